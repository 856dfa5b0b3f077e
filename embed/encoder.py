"""The embeddings stage: every stored pair through the frozen CLIP, one Parquet part per shard, and the empty caption once."""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import normalize

from data.artifacts import Artifact, PartSpec
from data.config import Config, parse_config
from data.errors import UserError
from data.executors import Executor
from data.run import Run
from data.runner import Stage, run_stage
from data.shards import Sample, read_shard
from embed.cache import CacheFormat, fixed_binary, write_part
from embed.clip import Clip, load_clip
from embed.settings import EmbeddingsSettings

STAGE_VERSION = 1
NULL_PART = "null"
PROBE_SEED = 2204_06125
PROBE_CAPTIONS = ("", "a photo of a corgi", "a red cube on top of a blue cube")


def build_embeddings(run: Run, executor: Executor) -> Artifact:
    """Embed every pair of the dataset (views choose later). Keeps parts whose shard and CLIP are unchanged."""
    dataset = run.dataset.require("make dataset")
    clip = load_clip(run)
    settings = run.config[EmbeddingsSettings].model_dump(mode="json") | {
        "clip.identity": clip.identity,
        "clip.name": clip.name,
    }
    config = run.portable_config()
    parts = [PartSpec(NULL_PART, {"clip": clip.identity}, {"config": config})]
    for receipt in dataset.receipts():
        shard = dataset.folder / "shards" / f"{receipt.name}.tar"
        inputs = {"clip": clip.identity, "shard": receipt.files[f"shards/{receipt.name}.tar"]["sha256"]}
        parts.append(PartSpec(receipt.name, inputs, {"config": config, "shard": str(shard)}))
    return run_stage(
        Stage("embeddings", STAGE_VERSION, run.embeddings.folder, settings, parts, embed_part), executor, run.logs
    )


def embed_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Make one part of the cache. Always on one thread: the last bits of a matrix product depend on the thread count,
    and the cache's bytes must not depend on how many workers made it."""
    config = parse_config(spec.payload["config"], "the run's config")
    settings = config[EmbeddingsSettings]
    clip = _cached_clip(json.dumps(spec.payload["config"], sort_keys=True))
    if clip.identity != spec.inputs["clip"]:
        raise UserError(
            f"the CLIP changed while its embeddings were made: {clip.identity[:12]} is not {spec.inputs['clip'][:12]}; "
            "run `make embeddings` again"
        )
    with _one_thread(), _precision(settings.precision):
        if spec.name == NULL_PART:
            table, counts = _null_table(clip, settings), {"null_captions": 1}
        else:
            table, counts = _shard_table(clip, settings, list(read_shard(Path(spec.payload["shard"]))))
    write_part(str(attempt / f"{spec.name}.parquet"), table, settings.row_group)
    return counts


def cache_format(clip: Clip, settings: EmbeddingsSettings, probes: str = "") -> CacheFormat:
    metadata = {
        "clip_identity": clip.identity, "clip_name": clip.name, "preprocess": clip.preprocess_digest,
        "tokenizer": clip.tokenizer_digest, "precision": settings.precision,
    }  # fmt: skip
    return CacheFormat(
        clip.embed_dim, clip.context_length, clip.vocab_size, metadata | ({"probes": probes} if probes else {})
    )


def probe_embeddings(clip: Clip) -> NDArray[np.float32]:
    """Fixed probes through the CLIP: two noise images, then three captions; float32 (5, d) of unit length. Kept in the cache so
    that another machine can tell whether its encoder still gives the same vectors."""
    images = np.random.default_rng(PROBE_SEED).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return (
        torch.cat([clip.encode_images(images), clip.encode_text(clip.tokenize(PROBE_CAPTIONS))]).numpy().astype("<f4")
    )


@lru_cache(maxsize=1)
def _cached_clip(config: str) -> Clip:
    parsed: Config = parse_config(json.loads(config), "the run's config")
    return load_clip(Run(parsed), parsed[EmbeddingsSettings].batch)


def _null_table(clip: Clip, settings: EmbeddingsSettings) -> pa.Table:
    probes = json.dumps([[round(float(v), 7) for v in row] for row in probe_embeddings(clip)])
    form = cache_format(clip, settings, probes)
    ids = clip.tokenize([""])
    unit, norms = _unit_float16(clip.encode_ids(ids))
    columns = ["caption", "caption_hash", "text_embedding", "text_norm", "token_ids", "n_tokens"]
    arrays = [
        pa.array([""]), pa.array([_hash16(b"")], pa.binary(16)), fixed_binary(unit), pa.array(norms),
        fixed_binary(ids.numpy().astype(form.token_dtype)), pa.array(clip.token_counts(ids).numpy().astype(np.int32)),
    ]  # fmt: skip
    schema = pa.schema([form.schema.field(name) for name in columns], metadata=form.schema.metadata)
    return pa.Table.from_arrays(arrays, schema=schema)


def _shard_table(clip: Clip, settings: EmbeddingsSettings, samples: list[Sample]) -> tuple[pa.Table, dict[str, int]]:
    form = cache_format(clip, settings)
    pixels = [_pixels(clip, sample) for sample in samples]
    image_units, image_norms = _unit_float16(
        clip.encode_pixels(torch.stack(pixels)) if pixels else torch.zeros(0, clip.embed_dim)
    )
    captions = [caption for sample in samples for caption in sample.meta["captions"]]
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = clip.tokenize(list(distinct))
    text_units, text_norms = _unit_float16(clip.encode_ids(ids))
    counts = clip.token_counts(ids).numpy() if len(ids) else np.zeros(0, np.int64)
    of_image = np.array([i for i, sample in enumerate(samples) for _ in sample.meta["captions"]], dtype=np.int64)
    of_text = np.array([distinct[caption] for caption in captions], dtype=np.int64)
    owners = [samples[i] for i in of_image]
    scores = (image_units[of_image].astype(np.float32) * text_units[of_text].astype(np.float32)).sum(axis=1)
    columns = {
        "key": [s.key for s in owners],
        "caption_index": [i for s in samples for i in range(len(s.meta["captions"]))],
        "uid": [s.meta["source_id"] for s in owners],
        "caption": captions,
        "caption_hash": [_hash16(c.encode()) for c in captions],
        "image_hash": [bytes.fromhex(s.meta["stored_sha256"])[:16] for s in owners],
        "image_embedding": fixed_binary(image_units[of_image]),
        "image_norm": image_norms[of_image],
        "text_embedding": fixed_binary(text_units[of_text]),
        "text_norm": text_norms[of_text],
        "token_ids": fixed_binary(ids.numpy().astype(form.token_dtype)[of_text]),
        "n_tokens": counts[of_text],
        "clip_score": scores,
        "width": [s.meta["width"] for s in owners],
        "height": [s.meta["height"] for s in owners],
        "split": [s.meta["split"] for s in owners],
    }  # fmt: skip
    schema = form.schema
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, schema.field(name).type) for name, c in columns.items()]
    truncated = int((counts[of_text] == clip.context_length).sum()) if len(of_text) else 0
    return pa.Table.from_arrays(arrays, schema=schema), {
        "samples": len(samples), "pairs": len(captions), "distinct_captions": len(distinct), "full_length_captions": truncated,
    }  # fmt: skip


def _pixels(clip: Clip, sample: Sample) -> torch.Tensor:
    # The embedding must be of the bytes the trainer will read, so they are checked against the hash recorded with them.
    if hashlib.sha256(sample.image).hexdigest() != sample.meta["stored_sha256"]:
        raise UserError(
            f"sample {sample.key}: its image differs from the hash stored beside it; run `python -m data verify`"
        )
    with Image.open(io.BytesIO(sample.image)) as image:
        return clip.preprocess(image.convert("RGB"))


def _unit_float16(raw: torch.Tensor) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Raw (n, d) -> unit-length float16 (n, d) and the lengths before, float32 (n,)."""
    norms = raw.norm(dim=-1)
    return normalize(raw, dim=-1).numpy().astype("<f2"), norms.numpy()


def _hash16(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _precision(name: str) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bf16")
