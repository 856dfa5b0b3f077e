"""The embeddings stage: every stored pair through the frozen CLIP, one Parquet part per shard, and the empty caption once."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from data.pipeline.artifacts import Artifact, publish_json
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import Executor
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.settings import ClusterSettings
from data.pipeline.stage import Input, PartSpec, Stage
from embed.clip.captions import CaptionEncodings, encode_captions
from embed.clip.model import Clip, ClipSource, Precision, load_clip
from embed.encoding.devices import choose_device, known_device
from embed.encoding.images import encode_shard_images, index_shard
from embed.encoding.recorded_clip import recorded_name
from embed.encoding.statistics import write_statistics
from embed.encoding.table import cache_format, null_table, pairs_table
from embed.encoding.threads import EncodingThreads, decode_thread_count, encoding_thread_count
from embed.encoding.throughput import measured
from embed.format import NULL_PART, write_part
from embed.settings import EmbeddingsSettings

STAGE_VERSION = 2
ENCODING = ("batch", "precision", "device", "reduced_decode", "row_group")  # the settings that decide a part's bytes


@dataclass(frozen=True)
class EncodingWork:
    """What a worker needs for a part: the CLIP and the name recorded of it, the settings (their `device` is the known one where the
    workers are this machine's), the cluster to share cores with, and the shard; None for the empty caption."""

    clip: ClipSource
    clip_name: str
    settings: EmbeddingsSettings
    cluster: ClusterSettings
    shard: Path | None = None


@dataclass(frozen=True)
class EncodedPart:
    """A part's rows and counts, and what encoding its images took (volatile; None for the empty caption)."""

    table: pa.Table
    counts: Mapping[str, int]
    took: Mapping[str, float] | None


def build_embeddings(run: Run, executor: Executor) -> Artifact:
    """Embed every pair of the dataset (views choose later). Keeps parts whose shard and CLIP are unchanged."""
    stage = embeddings_stage(run)
    with measured(run):
        return run_stage(stage, executor, run.logs)


def embeddings_stage(run: Run) -> Stage:
    """A part for each of the dataset's, and the empty caption's. Raises UserError where dataset or CLIP is not there."""
    dataset, clip = Lineage(run).require("dataset"), load_clip(run)
    cluster = run.config[ClusterSettings]
    device = known_device(run.config[EmbeddingsSettings], cluster)
    settings = run.config[EmbeddingsSettings].model_copy(update={"device": device})
    name, encoder = recorded_name(run, clip), Input("@clip", clip.identity)
    # Workers load their own CLIP from its source.
    work = EncodingWork(ClipSource.of(run), name, settings, cluster)
    parts = [PartSpec(NULL_PART, (encoder,), work)]
    for part, digest in dataset.part_digests().items():
        shard = dataset.folder / "shards" / f"{part}.tar"
        parts.append(PartSpec(part, (encoder, Input(f"dataset:{part}", digest)), replace(work, shard=shard)))
    shaping = settings.model_dump(mode="json", include=set(ENCODING))
    shaping |= {"clip.identity": clip.identity, "clip.name": name}
    finish = partial(write_statistics, dim=clip.embed_dim)
    return Stage("embeddings", STAGE_VERSION, run.embeddings.folder, shaping, parts, embed_part, finish)


def embed_part(spec: PartSpec, attempt: Path) -> Mapping[str, int]:
    """Make one part of the cache, in a worker: load the CLIP, encode, write."""
    started, work = time.perf_counter(), spec.work
    device = choose_device(work.settings.device)
    clip = _clip_for(work, device, spec.digest_of("@clip"))
    loaded = time.perf_counter()
    part = _encode_null(clip, work, device) if work.shard is None else _encode_shard(clip, work, work.shard, device)
    encoded = time.perf_counter()
    write_part(str(attempt / f"{spec.name}.parquet"), part.table, work.settings.row_group)
    now = time.perf_counter()
    if part.took is not None:
        times = {"loading": loaded - started, "writing": now - encoded, "seconds": now - started}
        publish_json(attempt / "log" / f"{spec.name}.json", {**part.took, **times, "device": device.type})
    return part.counts


def _clip_for(work: EncodingWork, device: torch.device, identity: str) -> Clip:
    """The CLIP on a device under its recorded name. Raises UserError when it is not the one that the stage was planned with."""
    cached = _cached_clip(identity, work.clip, work.settings.batch, work.settings.precision, str(device))
    return replace(cached, name=work.clip_name)


@lru_cache(maxsize=1)
def _cached_clip(identity: str, source: ClipSource, batch: int, precision: Precision, device: str) -> Clip:
    """Loaded once in each worker process, and anew for another `identity`: workers outlive a CLIP that is replaced."""
    clip = source.load(batch, precision, device)
    if clip.identity != identity:
        raise UserError(
            f"the CLIP changed while its embeddings were made: {clip.identity[:12]} is not {identity[:12]}; "
            "run `make embeddings` again",
            Code.FOREIGN,
        )
    return clip


def _encode_null(clip: Clip, work: EncodingWork, device: torch.device) -> EncodedPart:
    with EncodingThreads(1, device) as threads:
        table = threads.submit(null_table, clip, work.settings, device).result()
    return EncodedPart(table, {"null_captions": 1}, None)


def _encode_shard(clip: Clip, work: EncodingWork, shard: Path, device: torch.device) -> EncodedPart:
    """A batch is encoded on one thread and never spans two shards, so that neither the number of workers nor of threads changes a
    byte."""
    settings, stored = work.settings, index_shard(shard)
    captions = [caption for sample in stored for caption in sample.meta["captions"]]
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    count, decoders = (f(settings, work.cluster, device) for f in (encoding_thread_count, decode_thread_count))
    with EncodingThreads(count, device) as threads:
        # First in the queue, so that one thread encodes captions while the others are at the images.
        text = threads.submit(_timed_captions, clip, list(distinct))
        raw, timing = encode_shard_images(clip, shard, stored, threads, decoders, settings.reduced_decode)
        texts, text_seconds = text.result()
    of_text = np.array([distinct[caption] for caption in captions], dtype=np.int64)
    table = pairs_table(stored, raw, texts, of_text, cache_format(clip, settings, device))
    counts = {
        "samples": len(stored), "pairs": len(captions), "distinct_captions": len(distinct),
        "truncated_captions": int(texts.truncated.sum()),
    }  # fmt: skip
    took = {
        "images": len(stored), "captions": len(distinct), "threads": count, "encoding": timing.seconds,
        "waited": timing.waited, "text": text_seconds,
    }  # fmt: skip
    return EncodedPart(table, counts, took)


def _timed_captions(clip: Clip, captions: Sequence[str]) -> tuple[CaptionEncodings, float]:
    start = time.perf_counter()
    return encode_captions(clip, captions, clip.batch), time.perf_counter() - start
