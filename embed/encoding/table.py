"""The rows of a part: what was encoded of a shard, or of the empty caption, as a table of the cache's format."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from embed.clip.captions import CaptionEncodings, encode_captions
from embed.clip.model import Clip
from embed.encoding.images import StoredImage
from embed.encoding.probes import probe_embeddings
from embed.format import CacheFormat, fixed_binary
from embed.settings import EmbeddingsSettings


def null_table(clip: Clip, settings: EmbeddingsSettings, device: torch.device) -> pa.Table:
    """The one row of the empty caption, with the probes in its metadata."""
    probes = json.dumps([[round(float(v), 7) for v in row] for row in probe_embeddings(clip)])
    form = cache_format(clip, settings, device, probes)
    empty = encode_captions(clip, [""], clip.batch)
    unit, norms = _unit_float16(empty.raw)
    columns = ["caption", "caption_hash", "text_embedding", "text_norm", "token_ids", "n_tokens"]
    arrays = [
        pa.array([""]), pa.array([hash16(b"")], pa.binary(16)), fixed_binary(unit), pa.array(norms),
        _token_binary(empty, form), pa.array(empty.n_tokens.numpy().astype(np.int32)),
    ]  # fmt: skip
    schema = pa.schema([form.schema.field(name) for name in columns], metadata=form.schema.metadata)
    return pa.Table.from_arrays(arrays, schema=schema)


def pairs_table(
    stored: Sequence[StoredImage], images: torch.Tensor, texts: CaptionEncodings, of_text: NDArray[np.int64], form: CacheFormat
) -> pa.Table:  # fmt: skip
    """A row for each pair by (key, caption_index). `images` are raw vectors, float32 (samples, d); `texts` the distinct captions, of
    which `of_text`, int64 (pairs,), names one for each row."""
    image_units, image_norms = _unit_float16(images)
    text_units, text_norms = _unit_float16(texts.raw)
    of_image = np.array([i for i, sample in enumerate(stored) for _ in sample.meta["captions"]], dtype=np.int64)
    owners = [stored[i] for i in of_image]
    captions = [caption for sample in stored for caption in sample.meta["captions"]]
    columns = {
        "key": [s.key for s in owners],
        "caption_index": [i for s in stored for i in range(len(s.meta["captions"]))],
        "uid": [s.meta["source_id"] for s in owners],
        "caption": captions,
        "caption_hash": [hash16(c.encode()) for c in captions],
        "image_hash": [bytes.fromhex(s.meta["stored_sha256"])[:16] for s in owners],
        "image_embedding": fixed_binary(image_units[of_image]),
        "image_norm": image_norms[of_image],
        "text_embedding": fixed_binary(text_units[of_text]),
        "text_norm": text_norms[of_text],
        "token_ids": _token_binary(texts, form, of_text),
        "n_tokens": texts.n_tokens.numpy()[of_text],
        "clip_score": clip_scores(image_units[of_image], text_units[of_text]),
        "width": [s.meta["width"] for s in owners],
        "height": [s.meta["height"] for s in owners],
        "split": [s.meta["split"] for s in owners],
    }
    schema = form.schema
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, schema.field(name).type) for name, c in columns.items()]
    return pa.Table.from_arrays(arrays, schema=schema)


def cache_format(clip: Clip, settings: EmbeddingsSettings, device: torch.device, probes: str = "") -> CacheFormat:
    """The format of the parts that this CLIP gives; `probes` stand in the empty caption's part alone."""
    metadata = {
        "clip_identity": clip.identity, "clip_name": clip.name, "preprocess": clip.preprocess_digest,
        "tokenizer": clip.tokenizer_digest, "precision": settings.precision, "device": device.type,
        "reduced_decode": str(settings.reduced_decode).lower(),
    }  # fmt: skip
    return CacheFormat(
        clip.embed_dim, clip.context_length, clip.vocab_size, metadata | ({"probes": probes} if probes else {})
    )


def clip_scores(images: NDArray[np.float16], texts: NDArray[np.float16]) -> NDArray[np.float32]:
    """Cosines of the stored vectors (n, d) row by row, (n,)."""
    scores: NDArray[np.float32] = (images.astype(np.float32) * texts.astype(np.float32)).sum(axis=1)
    return scores


def hash16(content: bytes) -> bytes:
    """The first half of sha256."""
    return hashlib.sha256(content).digest()[:16]


def _token_binary(
    texts: CaptionEncodings, form: CacheFormat, rows: NDArray[np.int64] | None = None
) -> pa.FixedSizeBinaryArray:
    ids = texts.ids.numpy().astype(form.token_dtype)
    return fixed_binary(ids if rows is None else ids[rows])


def _unit_float16(raw: torch.Tensor) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Raw (n, d) -> unit-length float16 (n, d) and the lengths before, float32 (n,)."""
    norms = raw.norm(dim=-1)
    return normalize(raw, dim=-1).numpy().astype("<f2"), norms.numpy()
