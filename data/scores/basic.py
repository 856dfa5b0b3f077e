"""`scores/basic`: what can be said about a pair without CLIP. Part n comes from shard n alone: its tar, its ledger, its plan rows.

One row a pair of a stored sample, in order of key and caption_index; facts about the image repeat for each of its captions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.dataset.ledger import ledger_path
from data.dataset.plan import read_plan
from data.dataset.shards import decode_rgb, read_shard
from data.fetch.files import TAR_PREFIX
from data.images.phash import phash64
from data.pipeline.artifacts import Artifact
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.scores.captions import caption_columns, detector_facts
from data.sources.values import is_blank, number_in

STAGE_VERSION = 2
GRID = 4  # mean colours are taken over GRID x GRID cells
SOURCE_PREFIX = "source_"
SIZED_AS_IN_TAR = "sized_as_in_tar"  # count: samples of existing tars whose JSON does not say the original's size

# `source_<name>` (float64) follows for every extra column that the source carries and that holds numbers, also written as text.
BASIC_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("caption_index", pa.int32()),
        ("caption_words", pa.int32()),  # between white space
        ("caption_chars", pa.int32()),
        ("caption_letters", pa.float32()),  # share of the characters that are letters
        ("latin", pa.float32()),  # share of the letters that are Latin
        ("alphabet", pa.string()),  # the commonest among the letters: latin, cyrillic, han ...; none without a letter
        ("language", pa.string()),  # ISO 639 code, und without a letter
        ("language_score", pa.float32()),  # the detector's probability
        ("boilerplate", pa.bool_()),
        ("boilerplate_kind", pa.string()),  # data.scores.boilerplate.BOILERPLATE, or null
        ("caption_hash", pa.uint64()),
        ("repeated_caption", pa.bool_()),  # an earlier caption of the same image has the same text
        ("min_side", pa.int32()),  # of the original image, pixels; see _sizes for existing tars
        ("max_side", pa.int32()),
        ("area", pa.int64()),
        ("aspect", pa.float64()),  # longer side over shorter
        ("pixel_std", pa.float32()),  # of the stored image's grey values, 0 to 127.5
        ("phash", pa.uint64()),
        ("colours", pa.binary(GRID * GRID * 3)),  # mean RGB of a 4 x 4 grid over the stored image, row by row
        ("nsfw", pa.string()),  # as the source says
        ("nsfw_score", pa.float64()),  # the same where it is a number, else null
        ("watermark", pa.float64()),  # as the source says
    ]
)


@dataclass(frozen=True)
class BasicWork:
    """The dataset whose shard is scored, and which of its source's extra columns hold numbers."""

    dataset: Path
    source_columns: tuple[str, ...]


def build_basic_scores(run: Run, executor: Executor) -> Artifact:
    """Score what is not scored yet. Raises UserError when the language detector is missing."""
    dataset = run.dataset.require("make dataset")
    names = source_columns(dataset)
    work = BasicWork(dataset.folder, names)
    parts = [PartSpec(name, (Input(f"dataset:{name}", d),), work) for name, d in dataset.part_digests().items()]
    settings = {"language": detector_facts(), "phash": "imagehash.phash, 64 bits", "source_columns": list(names)}
    stage = Stage("scores-basic", STAGE_VERSION, run.scores("basic").folder, settings, parts, basic_part)
    return run_stage(stage, executor, run.logs)


def source_columns(dataset: Artifact) -> tuple[str, ...]:
    """Names of the source's extra columns that hold numbers and nothing else, sorted: the same for every part. A CSV's numbers are
    text; a column counts as one of numbers when every cell that is not blank is one."""
    kinds: dict[str, bool] = {}
    for text in read_plan(dataset.folder, columns=["extra"])["extra"].drop_null().to_pylist():
        for name, value in json.loads(text).items():
            if value is not None and not (isinstance(value, str) and is_blank(value)):
                kinds[name] = kinds.get(name, True) and _number(value) is not None
    return tuple(sorted(name for name, is_number in kinds.items() if is_number))


def basic_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Part function: reads the shard's tar once."""
    work: BasicWork = spec.work
    folder, name = work.dataset, spec.name
    ledger = pq.read_table(ledger_path(folder, name), columns=["key", "reason", "original_width", "original_height"])
    stored = ledger.filter(pc.is_null(ledger["reason"])).sort_by("key")
    plan = read_plan(folder, int(name), ["key", "url", "captions", "nsfw", "watermark", "extra"])
    plan = plan.take(pc.index_in(stored["key"], plan["key"].combine_chunks()))
    images = _image_columns(folder / "shards" / f"{name}.tar", stored["key"].to_pylist())
    captions = plan["captions"].combine_chunks()
    of_image = pc.list_parent_indices(captions)
    text = captions.flatten()
    extras: list[dict[str, Any]] = [json.loads(text) if text else {} for text in plan["extra"].to_pylist()]
    width, height, as_in_tar = _original_sizes(stored, plan["url"].to_pylist(), extras)
    per_image = {
        "key": stored["key"], **_sizes(width, height), **images, "nsfw": plan["nsfw"], "watermark": plan["watermark"],
        "nsfw_score": pa.array([None if v is None else number_in(v) for v in plan["nsfw"].to_pylist()], pa.float64()),
        **_extras(extras, work.source_columns),
    }  # fmt: skip
    columns = {column: _as_array(values).take(of_image) for column, values in per_image.items()}
    columns |= caption_columns(text) | {
        "caption_index": _places(of_image),
        "repeated_caption": _repeats(of_image, text),
    }
    extra = [pa.field(SOURCE_PREFIX + n, pa.float64()) for n in work.source_columns]
    schema = pa.schema([*BASIC_SCHEMA, *extra])
    table = pa.table({field.name: columns[field.name].cast(field.type) for field in schema}, schema=schema)
    pq.write_table(table, attempt / f"{name}.parquet", compression="zstd")
    return {"pairs": len(table), "samples": len(stored)} | ({SIZED_AS_IN_TAR: as_in_tar} if as_in_tar else {})


def _image_columns(tar: Path, keys: list[str]) -> dict[str, pa.Array]:
    """pixel_std, phash and colours of each stored image, in order of key."""
    found: dict[str, tuple[float, int, bytes]] = {}
    for sample in read_shard(tar):
        found[sample.key] = image_scores(decode_rgb(sample.image))
    if sorted(found) != keys:
        raise UserError(
            f"{tar} holds {len(found)} samples, its ledger says {len(keys)} or others; run `python -m data verify`",
            Code.DAMAGED,
        )
    std, phash, colours = ([found[key][i] for key in keys] for i in range(3))
    return {
        "pixel_std": pa.array(std, pa.float32()),
        "phash": pa.array(phash, pa.uint64()),
        "colours": pa.array(colours, pa.binary(GRID * GRID * 3)),
    }


def image_scores(rgb: NDArray[np.uint8]) -> tuple[float, int, bytes]:
    """(standard deviation of the grey values, perceptual hash, mean colours of the grid) of uint8 (height, width, 3)."""
    import cv2

    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    colours = cv2.resize(rgb, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return float(cv2.meanStdDev(grey)[1][0, 0]), phash64(rgb), colours.tobytes()


def _original_sizes(
    stored: pa.Table, urls: Sequence[str], extras: Sequence[dict[str, Any]]
) -> tuple[pa.Array, pa.Array, int]:
    """Width and height of the original images. An image out of an existing tar was often resized by the tool that wrote the tar: its
    JSON says the original's size (img2dataset's does); how many lack it is the third value."""
    sizes = list(zip(stored["original_width"].to_pylist(), stored["original_height"].to_pylist(), strict=True))
    as_in_tar = 0
    for row, (url, extra) in enumerate(zip(urls, extras, strict=True)):
        if url.startswith(TAR_PREFIX):
            said = (extra.get("original_width"), extra.get("original_height"))
            if all(isinstance(side, int) and 0 < side < 2**31 for side in said):
                sizes[row] = said
            else:
                as_in_tar += 1
    width, height = (pa.array([size[i] for size in sizes], pa.int32()) for i in range(2))
    return width, height, as_in_tar


def _sizes(width: pa.Array, height: pa.Array) -> dict[str, pa.Array]:
    low, high = pc.min_element_wise(width, height), pc.max_element_wise(width, height)
    area = pc.multiply(width.cast(pa.int64()), height.cast(pa.int64()))
    aspect = pc.divide(high.cast(pa.float64()), low.cast(pa.float64()))
    return {"min_side": low, "max_side": high, "area": area, "aspect": aspect}


def _extras(extras: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, pa.Array]:
    return {
        SOURCE_PREFIX + name: pa.array([_number(extra.get(name)) for extra in extras], pa.float64()) for name in names
    }


def _number(value: Any) -> float | None:
    found = number_in(value) if isinstance(value, str) else value
    return float(found) if isinstance(found, int | float) else None


def _places(of_image: pa.Array) -> pa.Array:
    """0, 1, 2 ... within each run of one image."""
    image = of_image.to_numpy(zero_copy_only=False)
    first = np.searchsorted(image, image, side="left")
    return pa.array((np.arange(len(image)) - first).astype(np.int32))


def _repeats(of_image: pa.Array, text: pa.Array) -> pa.Array:
    """Whether an earlier caption of the same image has the very same text."""
    table = pa.table({"image": of_image, "text": text, "row": pa.array(np.arange(len(text)))})
    first = table.group_by(["image", "text"]).aggregate([("row", "min")])["row_min"].to_numpy()
    repeated = np.ones(len(text), bool)
    repeated[first] = False
    return pa.array(repeated)


def _as_array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
