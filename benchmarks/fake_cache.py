"""A cache as the embeddings stage leaves it, made by a fake encoder: for benchmarks and tests that need rows and no CLIP.

Everything follows from keys: the vectors of image i and of its captions, its split, its tokens. So caches of the same keys that are
cut into other parts hold the same pairs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.pipeline.artifacts import Artifact, PartSpec, fingerprint
from data.pipeline.executors import InProcess
from data.pipeline.runner import Stage, run_stage
from embed.format import CacheFormat, fixed_binary, write_part

SPLITS = ("train", "train", "train", "val", "test")  # of image i: number i modulo 5
TEXT_PHASE = 0.5


PERIOD = 100_003  # images whose numbers differ by it have the same vector: planted duplicates


def unit_vectors(numbers: NDArray[np.int64], dim: int, phase: float = 0.0) -> NDArray[np.float16]:
    """float16 (n, dim) of unit length: a wave of its own frequency for each column, sampled at the image's number."""
    frequencies = np.random.default_rng(dim).uniform(0.5, 2.5, dim).astype(np.float32)
    angle = (numbers % PERIOD).astype(np.float32)[:, None] * frequencies
    angle += np.float32(phase) + np.arange(dim, dtype=np.float32)
    waves = np.sin(angle, out=angle)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    return waves.astype("<f2")


def write_cache(
    folder: Path, images: Sequence[Sequence[int]], dim: int, captions: int = 1, row_group: int = 8192,
    context_length: int = 77, identity: str = "0" * 64, clip_name: str = "fake/random",
) -> Artifact:  # fmt: skip
    """An embeddings artifact in `folder` with a part for each entry of `images`, which lists its images' numbers in ascending order."""
    facts = {
        "dim": dim,
        "captions": captions,
        "row_group": row_group,
        "context_length": context_length,
        "identity": identity,
        "clip_name": clip_name,
    }
    specs = [PartSpec("null", {"images": "none"}, facts)]
    for i, numbers in enumerate(images):
        listed = [numbers.start, numbers.stop] if isinstance(numbers, range) else list(numbers)
        payload = {"images": listed, "range": isinstance(numbers, range)} | facts
        specs.append(PartSpec(f"{i:05d}", {"images": fingerprint(listed)}, payload))
    return run_stage(Stage("embeddings", 1, folder, facts, specs, write_fake_part), InProcess())


def write_fake_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    facts = spec.payload
    form = CacheFormat(
        facts["dim"],
        facts["context_length"],
        49408,
        {"clip_identity": facts["identity"], "clip_name": facts["clip_name"]},
    )
    if spec.name == "null":
        pq.write_table(_null(form), attempt / "null.parquet")
        return {"null_captions": 1}
    numbers = np.arange(*facts["images"]) if facts["range"] else np.array(facts["images"], dtype=np.int64)
    table = _table(form, np.repeat(numbers, facts["captions"]), np.tile(np.arange(facts["captions"]), len(numbers)))
    write_part(str(attempt / f"{spec.name}.parquet"), table, facts["row_group"])
    return {"samples": len(numbers), "pairs": len(table)}


def _table(form: CacheFormat, numbers: NDArray[np.int64], index: NDArray[np.int64]) -> pa.Table:
    n = len(numbers)
    keys = pa.array(np.char.mod("%09d", numbers).tolist(), pa.string())
    image, text = unit_vectors(numbers, form.dim), unit_vectors(7 * numbers + index, form.dim, TEXT_PHASE)
    lengths = (3 + (numbers + index) % (form.context_length - 3)).astype(np.int32)
    tokens = (numbers[:, None] + index[:, None] + np.arange(form.context_length)) % 49406 + 1
    tokens[np.arange(form.context_length) >= lengths[:, None]] = 0
    hashes = np.zeros((n, 4), "<i4")
    hashes[:, 0], hashes[:, 1] = numbers, index
    one = np.ones(n, np.float32)
    side = np.full(n, 256, np.int32)
    columns = {
        "key": keys, "caption_index": index.astype(np.int32), "uid": keys,
        "caption": [f"caption {k} of image {i}" for i, k in zip(numbers.tolist(), index.tolist(), strict=True)],
        "caption_hash": fixed_binary(hashes), "image_hash": fixed_binary(hashes),
        "image_embedding": fixed_binary(image), "image_norm": one, "text_embedding": fixed_binary(text), "text_norm": one,
        "token_ids": fixed_binary(tokens.astype(form.token_dtype)), "n_tokens": lengths,
        "clip_score": np.einsum("nd,nd->n", image, text, dtype=np.float32), "width": side, "height": side,
        "split": np.array(SPLITS)[numbers % 5].tolist(),
    }  # fmt: skip
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, form.schema.field(k).type) for k, c in columns.items()]
    return pa.Table.from_arrays(arrays, schema=form.schema)


def _null(form: CacheFormat) -> pa.Table:
    names = ["caption", "text_embedding", "token_ids", "n_tokens"]
    zero = np.zeros(1, np.int64)
    tokens = np.zeros((1, form.context_length), form.token_dtype)
    arrays = [
        pa.array([""]), fixed_binary(unit_vectors(zero, form.dim, TEXT_PHASE)), fixed_binary(tokens), pa.array([2], pa.int32())
    ]  # fmt: skip
    return pa.Table.from_arrays(
        arrays, schema=pa.schema([form.schema.field(n) for n in names], metadata=form.schema.metadata)
    )


def write_view(
    folder: Path, embeddings: Artifact, keep_every: int = 2, thresholds: Mapping[str, Any] | None = None
) -> Artifact:
    """A view of the cache's pairs that keeps every `keep_every`-th image, made with `thresholds`."""
    specs = [
        PartSpec(r.name, {"keep": str(keep_every)}, {"path": str(embeddings.folder / f"{r.name}.parquet"), "every": keep_every})
        for r in embeddings.receipts()
        if r.name != "null"
    ]  # fmt: skip
    return run_stage(Stage("view", 1, folder, dict(thresholds or {}), specs, write_fake_view), InProcess())


def write_fake_view(spec: PartSpec, attempt: Path) -> dict[str, int]:
    table = pq.read_table(spec.payload["path"], columns=["key", "caption_index"]).replace_schema_metadata(None)
    keep = table["key"].cast(pa.int64()).to_numpy() % spec.payload["every"] == 0
    pq.write_table(table.append_column("keep", pa.array(keep)), attempt / f"{spec.name}.parquet", compression="zstd")
    return {"pairs": len(table), "kept_pairs": int(keep.sum())}
