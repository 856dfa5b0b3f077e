"""The embeddings stage: every stored pair through the frozen CLIP, one Parquet part per shard, and the empty caption once."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from data.pipeline.artifacts import Artifact, PartSpec, Receipt, publish_json
from data.pipeline.config import Config, parse_config
from data.pipeline.errors import UserError
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.runner import Stage, run_stage
from data.pipeline.settings import ClusterSettings
from embed.clip.captions import CaptionEncodings, encode_captions
from embed.clip.model import Clip, Precision, load_clip
from embed.encoding.devices import choose_device, known_device
from embed.encoding.images import StoredImage, encode_shard_images, index_shard
from embed.encoding.statistics import STATISTICS_FILE, write_statistics
from embed.encoding.threads import Lanes, decode_thread_count, lane_count
from embed.encoding.throughput import measured
from embed.format import NULL_PART, CacheFormat, fixed_binary, read_metadata, write_part
from embed.settings import EmbeddingsSettings

STAGE_VERSION = 2
ENCODING = ("batch", "precision", "device", "reduced_decode", "row_group")  # the settings that decide a part's bytes
PROBE_SEED = 2204_06125
PROBE_CAPTIONS = ("", "a photo of a corgi", "a red cube on top of a blue cube")


def build_embeddings(run: Run, executor: Executor) -> Artifact:
    """Embed every pair of the dataset (views choose later). Keeps parts whose shard and CLIP are unchanged."""
    dataset = run.dataset.require("make dataset")
    clip = load_clip(run)
    identity, name, dim = clip.identity, _recorded_name(run, clip), clip.embed_dim
    del clip  # workers load their own
    device = known_device(run.config[EmbeddingsSettings], run.config[ClusterSettings])
    settings = run.config[EmbeddingsSettings].model_dump(mode="json", include=set(ENCODING)) | {"device": device}
    config = run.portable_config()
    config["embeddings"]["device"] = device
    payload = {"config": config, "clip_name": name}
    parts = [PartSpec(NULL_PART, {"clip": identity}, payload)]
    for receipt in dataset.receipts():
        shard = dataset.folder / "shards" / f"{receipt.name}.tar"
        inputs = {"clip": identity, "shard": receipt.files[f"shards/{receipt.name}.tar"]["sha256"]}
        parts.append(PartSpec(receipt.name, inputs, payload | {"shard": str(shard)}))

    def finish(folder: Path, receipts: list[Receipt]) -> Sequence[str]:
        names = [part.name for part in parts if part.name != NULL_PART]
        write_statistics(folder, names, receipts, dim)
        return [STATISTICS_FILE]

    facts = settings | {"clip.identity": identity, "clip.name": name}
    stage = Stage("embeddings", STAGE_VERSION, run.embeddings.folder, facts, parts, embed_part, finish)
    with measured(run):
        return run_stage(stage, executor, run.logs)


def embed_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Make one part of the cache. A batch is encoded on one thread and never spans two shards, so that neither the number of
    workers nor of threads changes a byte."""
    started = time.perf_counter()
    config = parse_config(spec.payload["config"], "the run's config")
    settings, cluster = config[EmbeddingsSettings], config[ClusterSettings]
    device = choose_device(settings.device)
    cached = _cached_clip(json.dumps(spec.payload["config"], sort_keys=True), str(device), spec.inputs["clip"])
    clip = replace(cached, name=spec.payload["clip_name"])
    if clip.identity != spec.inputs["clip"]:
        raise UserError(
            f"the CLIP changed while its embeddings were made: {clip.identity[:12]} is not {spec.inputs['clip'][:12]}; "
            "run `make embeddings` again"
        )
    loaded = time.perf_counter()
    facts: dict[str, Any] = {}
    with Lanes(lane_count(settings, cluster, device), device) as lanes:
        if spec.name == NULL_PART:
            table, counts = lanes.submit(_null_table, clip, settings, device).result(), {"null_captions": 1}
        else:
            decoders = decode_thread_count(settings, cluster, device)
            table, counts, facts = _shard_table(clip, settings, Path(spec.payload["shard"]), lanes, decoders)
    writing = time.perf_counter()
    write_part(str(attempt / f"{spec.name}.parquet"), table, settings.row_group)
    now = time.perf_counter()
    if facts:
        times = {"loading": loaded - started, "writing": now - writing, "seconds": now - started, "device": device.type}
        publish_json(attempt / "log" / f"{spec.name}.json", facts | times)
    return counts


def cache_format(clip: Clip, settings: EmbeddingsSettings, device: torch.device, probes: str = "") -> CacheFormat:
    metadata = {
        "clip_identity": clip.identity, "clip_name": clip.name, "preprocess": clip.preprocess_digest,
        "tokenizer": clip.tokenizer_digest, "precision": settings.precision, "device": device.type,
        "reduced_decode": str(settings.reduced_decode).lower(),
    }  # fmt: skip
    return CacheFormat(
        clip.embed_dim, clip.context_length, clip.vocab_size, metadata | ({"probes": probes} if probes else {})
    )


def probe_embeddings(clip: Clip) -> NDArray[np.float32]:
    """Fixed probes through the CLIP: two noise images, then three captions; float32 (5, d) of unit length. Kept in the cache so
    that another machine can tell whether its encoder still gives the same vectors."""
    images = np.random.default_rng(PROBE_SEED).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    found = torch.cat([clip.encode_images(images).cpu(), clip.encode_text(clip.tokenize(PROBE_CAPTIONS)).cpu()])
    return found.numpy().astype("<f4")


def cache_clip(run: Run) -> Clip:
    """The run's CLIP in the precision that its cache was made in. Raises UserError when the cache was made with another one."""
    metadata, clip = compared_clip(run)
    if metadata["clip_identity"] != clip.identity:
        raise UserError(
            f"{other_clip(run, metadata, clip)}: their vectors cannot be compared; use the CLIP it was made with, or delete "
            f"{run.embeddings.folder} and run `make embeddings`"
        )
    return clip


def compared_clip(run: Run) -> tuple[dict[str, str], Clip]:
    """What the cache says of the CLIP it was made with, and the run's CLIP in the same precision, which may be another one."""
    folder = run.embeddings.require("make embeddings").folder
    metadata = read_metadata(str(folder / f"{NULL_PART}.parquet"))
    settings, precision = run.config[EmbeddingsSettings], cast(Precision, metadata["precision"])
    return metadata, load_clip(run, settings.batch, precision, str(choose_device(settings.device)))


def other_clip(run: Run, metadata: dict[str, str], clip: Clip) -> str:
    return (
        f"{run.embeddings.folder} was made with the CLIP {metadata['clip_name']} ({metadata['clip_identity'][:12]}), "
        f"not with the one in use ({clip.identity[:12]})"
    )


def _recorded_name(run: Run, clip: Clip) -> str:
    """A CLIP that was copied or renamed keeps the name under which its cache was begun: its identity decides, not its folder."""
    settings = (run.embeddings.plan_json() or {"settings": {}})["settings"]
    return str(settings["clip.name"]) if settings.get("clip.identity") == clip.identity else clip.name


@lru_cache(maxsize=1)
def _cached_clip(config: str, device: str, _: str) -> Clip:
    """The run's CLIP, loaded once in each worker process, and anew for another identity: workers outlive a CLIP that is replaced."""
    parsed: Config = parse_config(json.loads(config), "the run's config")
    settings = parsed[EmbeddingsSettings]
    return load_clip(Run(parsed), settings.batch, settings.precision, device)


def _null_table(clip: Clip, settings: EmbeddingsSettings, device: torch.device) -> pa.Table:
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


def _shard_table(
    clip: Clip, settings: EmbeddingsSettings, shard: Path, lanes: Lanes, decoders: int
) -> tuple[pa.Table, dict[str, int], dict[str, Any]]:
    """The part's rows, its counts, and what the encoding took (volatile)."""
    stored = index_shard(shard)
    captions = [caption for sample in stored for caption in sample.meta["captions"]]
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    # First in the queue, so that one lane encodes captions while the others are at the images.
    text = lanes.submit(_timed_captions, clip, list(distinct))
    raw, timing = encode_shard_images(clip, shard, stored, lanes, decoders, settings.reduced_decode)
    texts, text_seconds = text.result()
    of_text = np.array([distinct[caption] for caption in captions], dtype=np.int64)
    table = _table(stored, captions, raw, texts, of_text, cache_format(clip, settings, lanes.device))
    counts = {
        "samples": len(stored), "pairs": len(captions), "distinct_captions": len(distinct),
        "truncated_captions": int(texts.truncated.sum()),
    }  # fmt: skip
    facts = {
        "images": len(stored), "captions": len(distinct), "lanes": lanes.width, "encoding": timing.seconds,
        "waited": timing.waited, "text": text_seconds,
    }  # fmt: skip
    return table, counts, facts


def _timed_captions(clip: Clip, captions: list[str]) -> tuple[CaptionEncodings, float]:
    start = time.perf_counter()
    return encode_captions(clip, captions, clip.batch), time.perf_counter() - start


def _table(
    stored: Sequence[StoredImage],
    captions: list[str],
    raw: torch.Tensor,
    texts: CaptionEncodings,
    of_text: NDArray[np.int64],
    form: CacheFormat,
) -> pa.Table:
    """Rows by (key, caption_index); `of_text` says which of the distinct captions each row has."""
    image_units, image_norms = _unit_float16(raw)
    text_units, text_norms = _unit_float16(texts.raw)
    of_image = np.array([i for i, sample in enumerate(stored) for _ in sample.meta["captions"]], dtype=np.int64)
    owners = [stored[i] for i in of_image]
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
    }  # fmt: skip
    schema = form.schema
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, schema.field(name).type) for name, c in columns.items()]
    return pa.Table.from_arrays(arrays, schema=schema)


def clip_scores(images: NDArray[np.float16], texts: NDArray[np.float16]) -> NDArray[np.float32]:
    """Cosines of the stored vectors, row by row."""
    scores: NDArray[np.float32] = (images.astype(np.float32) * texts.astype(np.float32)).sum(axis=1)
    return scores


def _token_binary(
    texts: CaptionEncodings, form: CacheFormat, rows: NDArray[np.int64] | None = None
) -> pa.FixedSizeBinaryArray:
    ids = texts.ids.numpy().astype(form.token_dtype)
    return fixed_binary(ids if rows is None else ids[rows])


def _unit_float16(raw: torch.Tensor) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Raw (n, d) -> unit-length float16 (n, d) and the lengths before, float32 (n,)."""
    norms = raw.norm(dim=-1)
    return normalize(raw, dim=-1).numpy().astype("<f2"), norms.numpy()


def hash16(content: bytes) -> bytes:
    """The first half of sha256."""
    return hashlib.sha256(content).digest()[:16]
