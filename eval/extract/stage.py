"""The features stage: each image set through each extractor once, in `eval/features/<extractor>/<image set>/`, on any worker."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.pipeline.artifacts import Artifact
from data.pipeline.run import Run
from data.pipeline.stage import Input, PartSpec, Stage
from embed.encoding.threads import one_thread
from eval.extract.clip import ClipExtractor
from eval.extract.extractor import Arrays, Extractor
from eval.images import ImageSet
from eval.prompts import read_prompts

FILE = "features.parquet"
TEXTS = "texts"  # the captions' own features, beside those of images


@dataclass(frozen=True)
class Features:
    """Named arrays (n, ...) of n images, with their ids and the captions that they belong to."""

    ids: list[str]
    groups: list[str]
    arrays: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FeaturesWork:
    """An image set through an extractor."""

    images: ImageSet
    extractor: Extractor


@dataclass(frozen=True)
class TextsWork:
    """The captions of a prompt set through the CLIP."""

    prompts: Path
    clip: ClipExtractor


def features_folder(extractor: Extractor, name: str) -> str:
    """Of an image set (or TEXTS), relative to the run's folder."""
    return f"eval/features/{extractor.name}/{name}"


def features_stage(run: Run, images: ImageSet, extractor: Extractor) -> Stage:
    """One part. The images decide, and the network that sees them."""
    part = PartSpec("00000", (*images.inputs, *extractor.inputs), FeaturesWork(images, extractor))
    folder = run.folder / features_folder(extractor, images.name)
    settings = {"extractor": extractor.name, **extractor.settings}
    return Stage(f"features-{extractor.name}-{images.name}", 1, folder, settings, [part], extract_images)


def extract_images(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Load an image set and write its features, on one torch thread."""
    work: FeaturesWork = spec.work
    images = work.images.load()
    with one_thread():
        found = work.extractor.extract(images.pixels)
    write_features(attempt / FILE, Features(images.ids, images.groups, found))
    return {"images": len(images.ids)}


def texts_stage(run: Run, prompts: Artifact, clip: ClipExtractor) -> Stage:
    """The features of a prompt set's captions, one part."""
    name = prompts.folder.relative_to(run.folder).as_posix()
    part = PartSpec("00000", (Input(name, prompts.digest()), *clip.inputs), TextsWork(prompts.folder, clip))
    folder = run.folder / features_folder(clip, TEXTS)
    return Stage(f"features-{clip.name}-{TEXTS}", 1, folder, {"extractor": clip.name}, [part], extract_texts)


def extract_texts(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Write the features of a prompt set's captions, on one torch thread."""
    work: TextsWork = spec.work
    prompts = read_prompts(Artifact(work.prompts))
    with one_thread():
        found = work.clip.extract_texts([p.caption for p in prompts])
    ids = [p.prompt_id for p in prompts]
    write_features(attempt / FILE, Features(ids, ids, found))
    return {"captions": len(ids)}


def write_features(path: Path, features: Features) -> None:
    """Columns image_id, group, and one of vectors for each array."""
    columns: dict[str, pa.Array] = {
        "image_id": pa.array(features.ids, pa.string()),
        "group": pa.array(features.groups, pa.string()),
    }
    for name, array in features.arrays.items():
        assert len(array) == len(features.ids), f"{name} has {len(array)} rows for {len(features.ids)} images"
        flat = pa.array(array.reshape(-1), pa.float32())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_features(folder: Path) -> Features:
    """The features of a complete folder."""
    table = pq.read_table(folder / FILE)
    return Features(table["image_id"].to_pylist(), table["group"].to_pylist(), _arrays(table))


def _arrays(table: pa.Table) -> Arrays:
    found = {}
    for name in table.column_names:
        if name not in ("image_id", "group"):
            column = table[name].combine_chunks()
            found[name] = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    return found
