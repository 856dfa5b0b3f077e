"""A cache as the embeddings stage leaves it, made by a fake encoder: for benchmarks and tests that need rows and no CLIP.

Everything follows from keys: the vectors of image i and of its captions, its split, its tokens. So caches of the same keys that are
cut into other parts hold the same pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.pipeline.artifacts import Artifact, fingerprint
from data.pipeline.executors import InProcess
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
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


@dataclass(frozen=True)
class FakeCache:
    """What decides a fake part: sizes, the CLIP it pretends to be of, the images' numbers (ascending; None for the empty caption)."""

    dim: int
    captions: int
    row_group: int
    context_length: int
    identity: str
    clip_name: str
    images: range | tuple[int, ...] | None = None

    @property
    def form(self) -> CacheFormat:
        return CacheFormat(
            self.dim, self.context_length, 49408, {"clip_identity": self.identity, "clip_name": self.clip_name}
        )


def write_cache(
    folder: Path, images: Sequence[Sequence[int]], dim: int, captions: int = 1, row_group: int = 8192,
    context_length: int = 77, identity: str = "0" * 64, clip_name: str = "fake/random",
) -> Artifact:  # fmt: skip
    """An embeddings artifact in `folder` with a part for each entry of `images`, which lists its images' numbers in ascending order."""
    work = FakeCache(dim, captions, row_group, context_length, identity, clip_name)
    specs = [PartSpec("null", (Input("@clip", identity),), work)]
    for i, numbers in enumerate(images):
        listed = numbers if isinstance(numbers, range) else tuple(numbers)
        told = [listed.start, listed.stop] if isinstance(listed, range) else listed
        # There is no dataset: the images are told with the CLIP.
        inputs = (Input("@clip", fingerprint([identity, told])),)
        specs.append(PartSpec(f"{i:05d}", inputs, replace(work, images=listed)))
    facts = {name: value for name, value in vars(work).items() if name != "images"}
    return run_stage(Stage("embeddings", 1, folder, facts, specs, write_fake_part), InProcess())


def write_fake_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    work: FakeCache = spec.work
    if work.images is None:
        pq.write_table(_null(work.form), attempt / "null.parquet")
        return {"null_captions": 1}
    numbers = np.array(work.images, dtype=np.int64)
    table = _table(work.form, np.repeat(numbers, work.captions), np.tile(np.arange(work.captions), len(numbers)))
    write_part(str(attempt / f"{spec.name}.parquet"), table, work.row_group)
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


@dataclass(frozen=True)
class FakeView:
    """The part of a cache whose pairs a fake view decides on, and which images it keeps."""

    path: Path
    every: int


def write_view(
    folder: Path, embeddings: Artifact, keep_every: int = 2, thresholds: Mapping[str, Any] | None = None
) -> Artifact:
    """A view of the cache's pairs that keeps every `keep_every`-th image, made with `thresholds`."""
    specs = [
        PartSpec(name, (Input(f"embeddings:{name}", digest),), FakeView(embeddings.folder / f"{name}.parquet", keep_every))
        for name, digest in embeddings.part_digests().items()
        if name != "null"
    ]  # fmt: skip
    return run_stage(Stage("view", keep_every, folder, dict(thresholds or {}), specs, write_fake_view), InProcess())


def write_fake_view(spec: PartSpec, attempt: Path) -> dict[str, int]:
    table = pq.read_table(spec.work.path, columns=["key", "caption_index"]).replace_schema_metadata(None)
    keep = table["key"].cast(pa.int64()).to_numpy() % spec.work.every == 0
    pq.write_table(table.append_column("keep", pa.array(keep)), attempt / f"{spec.name}.parquet", compression="zstd")
    return {"pairs": len(table), "kept_pairs": int(keep.sum())}
