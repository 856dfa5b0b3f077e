"""Captions to token ids, by whatever tokenizer open_clip names for a model: CLIP's own, a Hugging Face one, SigLIP's.

CLIP's own is a byte-pair encoding of which a run may carry a shrunk copy (`bpe.txt.gz`).
"""

import gzip
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe, get_clean_fn, get_pairs

from data.pipeline.artifacts import fingerprint, publish_bytes
from data.pipeline.errors import UserError


class CaptionTokenizer:
    """An open_clip tokenizer with what a cache must know: how many ids of a row are real, which captions were cut, a digest.

    `digest` (sha256 hex) covers the tokenizer's own files and settings, not where they lie.
    """

    def __init__(self, tokenizer: Any, bpe: Path | None = None) -> None:
        if getattr(tokenizer, "reduction_fn", None) is not None:
            raise UserError(
                "this CLIP's tokenizer shortens captions at random (text_cfg.tokenizer_kwargs.reduction_mask); remove that setting: "
                "embeddings must not change from run to run"
            )
        self.tokenizer = tokenizer
        self.context_length = int(tokenizer.context_length)
        self._words = WordIds(tokenizer) if isinstance(tokenizer, SimpleTokenizer) else None
        self.digest = _bpe_digest(tokenizer, bpe) if self._words else _hugging_face_digest(tokenizer)

    def __call__(self, captions: Sequence[str], context_length: int | None = None) -> torch.Tensor:
        """int64 (n, context_length), padded; a long caption is cut and keeps its end-of-text. Equal to open_clip's own."""
        length = context_length or self.context_length
        if not captions:
            return torch.zeros(0, length, dtype=torch.int64)
        if self._words:
            return self._words.rows(captions, length)
        ids: torch.Tensor = self.tokenizer(list(captions), context_length=length)
        return ids

    def counts(self, ids: torch.Tensor) -> torch.Tensor:
        """Number of ids up to and including the end-of-text, int64 (n,).

        CLIP's own end-of-text is the largest id of a row. Elsewhere padding has an id of its own, unless it is the end-of-text's
        (SigLIP): then the first of the closing run is the end.
        """
        if self._words:
            return ids.argmax(dim=1) + 1
        padding, end = self._special_ids()
        places = torch.arange(1, ids.shape[1] + 1, device=ids.device) * (ids != padding)
        return (places.amax(dim=1) + int(padding == end)).clamp(max=ids.shape[1])

    def truncated(self, captions: Sequence[str], ids: torch.Tensor) -> NDArray[np.bool_]:
        """Which captions did not fit, bool (n,): those whose row gains an id when one more place is given."""
        cut = (self.counts(ids) == ids.shape[1]).numpy()
        full = np.flatnonzero(cut)
        longer = self([captions[i] for i in full.tolist()], context_length=ids.shape[1] + 1)
        cut[full] = (self._content(longer) > self._content(ids[full])).numpy()
        return cut

    def _content(self, ids: torch.Tensor) -> torch.Tensor:
        return self.counts(ids) if self._words else (ids != self._special_ids()[0]).sum(dim=1)

    def _special_ids(self) -> tuple[int, int | None]:
        """Ids of padding and end-of-text as open_clip's wrapper leaves them in a row."""
        inner = self.tokenizer.tokenizer
        end = inner.eos_token_id if inner.eos_token_id is not None else inner.sep_token_id
        if inner.pad_token_id is None:
            raise UserError(f"the tokenizer {type(inner).__name__} has no padding token; set its pad_token")
        return int(inner.pad_token_id), end


class WordIds:
    """CLIP's byte-pair encoding with the ids of each word kept: equal to `SimpleTokenizer`, several times as fast.

    Plain ASCII without an ampersand needs no repair of its encoding and holds no HTML entity: there cleaning is lower case and
    single spaces.
    """

    def __init__(self, tokenizer: SimpleTokenizer) -> None:
        self.tokenizer = tokenizer
        self.lower = tokenizer.clean_fn is get_clean_fn("lower")
        self.known: dict[str, tuple[int, ...]] = {}

    def rows(self, captions: Sequence[str], length: int) -> torch.Tensor:
        rows = np.zeros((len(captions), length), dtype=np.int64)
        for row, caption in zip(rows, captions, strict=True):
            ids = [self.tokenizer.sot_token_id, *self.encode(caption)][: length - 1]
            row[: len(ids)] = ids
            row[len(ids)] = self.tokenizer.eot_token_id
        return torch.from_numpy(rows)

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption without start and end."""
        plain = self.lower and caption.isascii() and caption.isprintable() and "&" not in caption
        text = " ".join(caption.split()).lower() if plain else self.tokenizer.clean_fn(caption)
        return [i for word in self.tokenizer.pat.findall(text) for i in self.known.get(word) or self._learn(word)]

    def _learn(self, word: str) -> tuple[int, ...]:
        letters = "".join(self.tokenizer.byte_encoder[byte] for byte in word.encode())
        ids = tuple(self.tokenizer.encoder[piece] for piece in self.tokenizer.bpe(letters).split(" "))
        if len(self.known) < 2**18:  # the web's words have no end
            self.known[word] = ids
        return ids


def tokenizer_for(config: Mapping[str, Any], bpe: Path | None) -> SimpleTokenizer:
    """CLIP's tokenizer over the given merges (default: CLIP's own), at the model's context length."""
    text = config["text_cfg"]
    tokenizer = SimpleTokenizer(
        bpe_path=str(bpe or default_bpe()),
        context_length=text.get("context_length", 77),
        **(text.get("tokenizer_kwargs") or {}),
    )
    if tokenizer.vocab_size != text.get("vocab_size", 49408):
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's text_cfg.vocab_size is {text.get('vocab_size', 49408)}"
        )
    return tokenizer


def hugging_face_tokenizer(config: Mapping[str, Any], source: str) -> HFTokenizer:
    """The tokenizer of a model whose `text_cfg` names a Hugging Face one, from a folder or the hub."""
    text = config["text_cfg"]
    return HFTokenizer(
        source,
        context_length=text.get("context_length", 77),
        tokenizer_mode=text.get("tokenizer_mode"),
        **(text.get("tokenizer_kwargs") or {}),
    )


def _bpe_digest(tokenizer: SimpleTokenizer, bpe: Path | None) -> str:
    merges = Path(bpe or default_bpe()).read_bytes()
    return fingerprint([type(tokenizer).__name__, hashlib.sha256(merges).hexdigest()])


def _hugging_face_digest(tokenizer: Any) -> str:
    inner = tokenizer.tokenizer
    if hasattr(inner, "backend_tokenizer"):
        content = json.loads(inner.backend_tokenizer.to_str())
        # The state of the last call, not of the tokenizer.
        content = {name: value for name, value in content.items() if name not in ("truncation", "padding")}
    else:
        with tempfile.TemporaryDirectory() as folder:
            files = inner.save_vocabulary(folder)
            content = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    special = {name: str(token) for name, token in sorted(inner.special_tokens_map.items())}
    wrapper = {
        name: str(getattr(tokenizer, name, None)) for name in ("context_length", "strip_sep_token", "tokenizer_mode")
    }
    clean = getattr(getattr(tokenizer, "clean_fn", None), "__name__", None)
    return fingerprint(
        [type(tokenizer).__name__, wrapper, clean, special, inner.pad_token_id, inner.eos_token_id, content]
    )


def shrink_bpe(captions: Sequence[str], destination: Path) -> int:
    """Write CLIP's merges restricted to those that `captions` use; returns the vocabulary size.

    The captions keep their segmentation, other words fall back to smaller pieces, and the end-of-text id stays the largest,
    which open_clip's pooling relies on. Most of a tiny CLIP's weights would otherwise be rows that never see a gradient.
    """
    full = SimpleTokenizer()
    words = {
        "".join(full.byte_encoder[b] for b in word.encode())
        for caption in set(captions)
        for word in full.pat.findall(full.clean_fn(caption))
    }
    used: set[tuple[str, str]] = set()
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            first, second = min(get_pairs(tuple(pieces)), key=lambda pair: full.bpe_ranks.get(pair, float("inf")))
            if (first, second) not in full.bpe_ranks:
                break
            used.add((first, second))
            pieces = _merge(pieces, first, second)
    merges = sorted(used, key=full.bpe_ranks.__getitem__)
    # No newline at the end: open_clip would read an empty merge.
    text = "\n".join(["#version: 0.2, merges used by this run's captions", *(" ".join(m) for m in merges)])
    publish_bytes(destination, gzip.compress(text.encode(), mtime=0))
    return SimpleTokenizer(bpe_path=str(destination)).vocab_size


def _merge(pieces: list[str], first: str, second: str) -> list[str]:
    merged: list[str] = []
    i = 0
    while i < len(pieces):
        if pieces[i : i + 2] == [first, second]:
            merged.append(first + second)
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged
