"""Does the cache still belong to its images? Parts, keys, hashes, lengths, scores, probes, and a sample of rows encoded again.

One part is in memory at a time. Each kind of problem is told once for a part, with the first row that has it.
"""

import hashlib
import heapq
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from data.pipeline.errors import UserError
from data.pipeline.run import Run
from embed.clip.model import Clip
from embed.encoding.images import Preprocess, StoredImage, index_shard
from embed.encoding.probes import probe_embeddings
from embed.encoding.recorded_clip import compared_clip, other_clip
from embed.encoding.table import clip_scores, hash16
from embed.format import NORM_TOLERANCE, NULL_PART, CacheFormat, as_matrix

SCORE_TOLERANCE = 1e-4
# 1 - cosine between a stored vector and the same input encoded again, in another batch or on another machine. float16 storage
# alone accounts for 2e-7.
COSINE_TOLERANCE = {"fp32": 1e-5, "fp16": 2e-4, "bf16": 2e-3}
SAMPLED_ROWS = 32


@dataclass(frozen=True)
class _Drawn:
    """A row to encode again: what the cache says of it, and where its image lies."""

    shard: Path
    stored: StoredImage
    caption: str
    image: NDArray[np.float16]
    text: NDArray[np.float16]
    token_ids: NDArray[np.unsignedinteger]
    n_tokens: int


def verify_cache(run: Run, rows: int = SAMPLED_ROWS) -> list[str]:
    """What is wrong with the run's embedding cache, one line each; empty when nothing is. `rows` are encoded again.

    Raises UserError where there is no whole cache, dataset or CLIP to compare.
    """
    if rows < 0:
        raise UserError(f"--rows is {rows}; it is the number of pairs to encode again, 0 for none")
    folder = run.embeddings.require("make embeddings").folder
    run.dataset.require("make dataset")
    if problems := run.embeddings.verify() + _check_names(run):
        return problems
    metadata, clip = compared_clip(run)
    if metadata["clip_identity"] != clip.identity:
        return [other_clip(run, metadata, clip)]
    # A heap of the rows with the largest hashes: the same ones in any order of parts.
    sample: list[tuple[str, int, _Drawn]] = []
    for name in sorted(_part_names(run)):
        shard = run.dataset.folder / "shards" / f"{name}.tar"
        table = pq.read_table(folder / f"{name}.parquet", memory_map=True)
        try:
            stored = index_shard(shard)
        except UserError as error:
            problems.append(str(error))
            continue
        found = [f"{folder / name}.parquet: {problem}" for problem in _check_part(table, stored, shard, clip)]
        problems += found
        if not found:
            _draw(sample, rows, run.seed, table, stored, shard, clip)
    tolerance = COSINE_TOLERANCE[metadata["precision"]]
    problems += _check_null(folder / f"{NULL_PART}.parquet", clip, tolerance)
    problems += _check_probes(metadata, clip, tolerance)
    problems += _check_sample([drawn for _, _, drawn in sample], clip, metadata["reduced_decode"] == "true", tolerance)
    return problems


def _part_names(run: Run) -> set[str]:
    return {receipt.name for receipt in run.embeddings.receipts()} - {NULL_PART}


def _check_names(run: Run) -> list[str]:
    """That there is a part for each shard, and no other."""
    folder, cached = run.embeddings.folder, _part_names(run)
    shards = {receipt.name for receipt in run.dataset.receipts()}
    lacking = [f"{folder}: no part for shard {name}; run `make embeddings`" for name in sorted(shards - cached)]
    return lacking + [f"{folder}: part {name} has no shard in {run.dataset.folder}" for name in sorted(cached - shards)]


def _check_part(table: pa.Table, stored: Sequence[StoredImage], shard: Path, clip: Clip) -> Iterator[str]:
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    if metadata.get("clip_identity") != clip.identity:
        yield "was made with another CLIP than the rest of the cache; delete it and run `make embeddings`"
        return
    schema = _format(clip).schema
    if table.schema.names != schema.names or table.schema.types != schema.types:
        unlike = sorted({f"{f.name} {f.type}" for f in schema} - {f"{f.name} {f.type}" for f in table.schema})
        yield f"lacks columns of the format ({', '.join(unlike) or 'their order'}); delete it and run `make embeddings`"
        return
    expected = [(s.key, i) for s in stored for i in range(len(s.meta["captions"]))]
    found = list(zip(table["key"].to_pylist(), table["caption_index"].to_pylist(), strict=True))
    if found != expected:
        row = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
        )
        told = [str(pairs[row]) if row < len(pairs) else "no row" for pairs in (found, expected)]
        yield f"row {row} is {told[0]}, the shard has {told[1]}: keys of cache and shards differ"
        return
    yield from _check_facts(table, stored)
    yield from _check_hashes(table, stored, shard)
    yield from _check_vectors(table, clip.embed_dim)


def _check_facts(table: pa.Table, stored: Sequence[StoredImage]) -> Iterator[str]:
    keys = table["key"].to_pylist()
    for column, name in (("uid", "source_id"), ("split", "split"), ("width", "width"), ("height", "height")):
        expected = [s.meta[name] for s in stored for _ in s.meta["captions"]]
        for row, (ours, theirs) in enumerate(zip(table[column].to_pylist(), expected, strict=True)):
            if ours != theirs:
                yield f"row {row}: {column} of {keys[row]} is {ours!r}, the shard has {theirs!r}"
                break


def _format(clip: Clip) -> CacheFormat:
    return CacheFormat(clip.embed_dim, clip.context_length, clip.vocab_size, {})


def _check_hashes(table: pa.Table, stored: Sequence[StoredImage], shard: Path) -> Iterator[str]:
    captions = [caption for s in stored for caption in s.meta["captions"]]
    keys, cached, hashes = (table[name].to_pylist() for name in ("key", "caption", "caption_hash"))
    for row, (ours, theirs) in enumerate(zip(cached, captions, strict=True)):
        if ours != theirs:
            yield f"row {row}: the caption of {keys[row]} is not the shard's"
            break
    for row, (caption, stored_hash) in enumerate(zip(cached, hashes, strict=True)):
        if hash16(caption.encode()) != stored_hash:
            yield f"row {row}: caption hash of {keys[row]} is not that of its caption"
            break
    images: dict[str, set[bytes]] = {}
    for key, stored_hash in zip(keys, table["image_hash"].to_pylist(), strict=True):
        images.setdefault(key, set()).add(stored_hash)
    with shard.open("rb") as file:
        for s in stored:
            if images.get(s.key) != {hash16(os.pread(file.fileno(), s.size, s.offset))}:
                yield f"image hash of {s.key} is not that of the stored image"
                break


def _check_vectors(table: pa.Table, dim: int) -> Iterator[str]:
    if not len(table):
        return
    keys, vectors = table["key"].to_pylist(), {}
    for side in ("image", "text"):
        vectors[side] = as_matrix(table[f"{side}_embedding"], "<f2", dim)
        lengths = np.linalg.norm(vectors[side].astype(np.float64), axis=1)
        off = ~(np.abs(lengths - 1) <= NORM_TOLERANCE)
        if off.any():
            row = int(off.argmax())
            yield f"{side}_embedding of row {row} ({keys[row]}) has length {lengths[row]:.4f}, not 1"
        raw = table[f"{side}_norm"].to_numpy()
        wrong = ~(np.isfinite(raw) & (raw > 0))
        if wrong.any():
            yield f"{side}_norm of row {int(wrong.argmax())} ({keys[int(wrong.argmax())]}) is {raw[wrong.argmax()]}"
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    unequal = (vectors["image"] != vectors["image"][first[inverse]]).any(axis=1)
    if unequal.any():
        row = int(unequal.argmax())
        yield f"image_embedding of row {row} differs from that of another pair of its image {keys[row]}"
    error = np.abs(clip_scores(vectors["image"], vectors["text"]) - table["clip_score"].to_numpy())  # type: ignore[arg-type]
    if not (error <= SCORE_TOLERANCE).all():
        row = int((~(error <= SCORE_TOLERANCE)).argmax())
        yield f"clip_score of row {row} ({keys[row]}) is not the cosine of its vectors: a vector stands at another pair's place"


def _draw(
    sample: list[tuple[str, int, _Drawn]], rows: int, seed: int, table: pa.Table, stored: Sequence[StoredImage], shard: Path, clip: Clip
) -> None:  # fmt: skip
    """Keep in `sample` the `rows` pairs whose seeded hashes are largest, over all parts."""
    owners = [(s, caption) for s in stored for caption in s.meta["captions"]]
    images, texts = (as_matrix(table[f"{side}_embedding"], "<f2", clip.embed_dim) for side in ("image", "text"))
    tokens = as_matrix(table["token_ids"], _format(clip).token_dtype, clip.context_length)
    for row, (owner, caption) in enumerate(owners):
        rank = hashlib.sha256(f"{seed} {owner.key} {row}".encode()).hexdigest()
        if len(sample) >= rows and (not sample or rank <= sample[0][0]):
            continue
        image, text, ids = (matrix[row].copy() for matrix in (images, texts, tokens))
        drawn = _Drawn(shard, owner, caption, image, text, ids, table["n_tokens"][row].as_py())  # type: ignore[arg-type]
        heapq.heappush(sample, (rank, row, drawn))
        if len(sample) > rows:
            heapq.heappop(sample)


def _check_null(path: Path, clip: Clip, tolerance: float) -> Iterator[str]:
    """The empty caption's row against the CLIP's."""
    table, form = pq.read_table(path), _format(clip)
    if len(table) != 1 or table["caption"].to_pylist() != [""]:
        yield f"{path}: {len(table)} rows, not the one of the empty caption"
        return
    then = torch.from_numpy(as_matrix(table["text_embedding"], "<f2", clip.embed_dim).astype(np.float64))
    ids = clip.tokenize([""])
    worst = _distance(clip.encode_ids(ids), then)
    if not float(worst) <= tolerance:
        yield f"{path}: the empty caption's embedding is {float(worst):.2g} (1 - cosine) from the encoder's, more than {tolerance:g}"
    if not np.array_equal(as_matrix(table["token_ids"], form.token_dtype, clip.context_length), ids.numpy()):
        yield f"{path}: the empty caption's token ids are not the tokenizer's"


def _check_probes(metadata: dict[str, str], clip: Clip, tolerance: float) -> Iterator[str]:
    then = np.array(json.loads(metadata["probes"]), dtype=np.float64)
    now = probe_embeddings(clip).astype(np.float64)
    if then.shape != now.shape:
        yield f"null.parquet: {len(then)} probe embeddings of {then.shape[-1]} components, this encoder gives {now.shape}"
        return
    worst = float(1 - (then * now).sum(axis=1).min())
    if not worst <= tolerance:
        yield (
            f"null.parquet: a probe embedding is {worst:.2g} (1 - cosine) from this machine's encoder, more than {tolerance:g}: "
            "its libraries or hardware encode differently"
        )


@torch.inference_mode()
def _check_sample(sample: list[_Drawn], clip: Clip, reduced: bool, tolerance: float) -> Iterator[str]:
    """Encode the drawn rows again, a batch at a time."""
    prepare = Preprocess(clip.preprocess_config, reduced)
    worst: dict[str, tuple[float, str]] = {"image": (0.0, ""), "text": (0.0, "")}
    for start in range(0, len(sample), clip.batch):
        drawn = sample[start : start + clip.batch]
        try:
            pixels = np.stack([prepare.square(_image_bytes(d)) for d in drawn])
        except (OSError, UserError) as error:
            yield f"a stored image cannot be decoded again: {error}"
            return
        ids = clip.tokenize([d.caption for d in drawn])
        lengths = clip.token_counts(ids).tolist()
        for d, row, length in zip(drawn, ids.numpy(), lengths, strict=True):
            if not np.array_equal(d.token_ids, row) or d.n_tokens != length:
                yield f"token ids of {d.stored.key} are not those of its caption {d.caption[:60]!r} (part {d.shard.stem})"
                break
        fresh = {
            "image": (clip.encode_pixels(prepare.normalise(torch.from_numpy(pixels))), [d.image for d in drawn]),
            "text": (clip.encode_ids(ids), [d.text for d in drawn]),
        }
        for name, (raw, stored) in fresh.items():
            distance = _distance(raw, torch.from_numpy(np.stack(stored)))
            row = int(distance.argmax())
            named = f"{drawn[row].stored.key} in part {drawn[row].shard.stem}"
            worst[name] = max(worst[name], (float(distance[row]), named))
    for name, (distance_found, named) in worst.items():
        if distance_found > tolerance:
            yield (
                f"re-encoding {len(sample)} rows: a stored {name} embedding is {distance_found:.2g} (1 - cosine) from the encoder's, "
                f"more than {tolerance:g}: the one of {named}"
            )


def _distance(raw: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """1 - cosine of each row, float64 (n,); 2 where it is no number."""
    cosines = (normalize(raw.cpu().double(), dim=-1) * normalize(stored.double(), dim=-1)).sum(dim=1)
    return torch.nan_to_num(1 - cosines, nan=2.0)


def _image_bytes(drawn: _Drawn) -> bytes:
    with drawn.shard.open("rb") as file:
        return os.pread(file.fileno(), drawn.stored.size, drawn.stored.offset)
