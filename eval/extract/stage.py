"""The features stage: each image set through each extractor once, cached by what it was made from."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.pipeline.artifacts import Artifact, PartSpec, fingerprint
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import Stage, run_stage
from eval.extract.attributes import AttributeClassifier, load_classifier, save_classifier, train_classifier
from eval.extract.extractor import Extractor
from eval.images import ImageSet
from eval.real_images import RealImages
from eval.settings import AttributeSettings

Features = NDArray[np.float32]


def features_of(run: Run, images: ImageSet, extractor: Extractor) -> Features:
    """Features (n, d) of an image set in its order, computed at most once (`eval/features/<extractor>/<digest>`)."""
    digest = fingerprint([images.digest, extractor.identity])[:16]
    part = PartSpec("00000", {"images": images.digest, "extractor": extractor.identity})
    # Without the set's name: sets of equal images (of different names) share one folder.
    settings = {"extractor": extractor.name, "identity": extractor.identity}
    folder = run.folder / "eval" / "features" / extractor.name / digest
    run_stage(
        Stage(f"features-{extractor.name}", 1, folder, settings, [part], partial(_extract, images, extractor)),
        InProcess(),
        run.logs,
    )
    return read_features(Artifact(folder), images.ids)


def _extract(images: ImageSet, extractor: Extractor, spec: PartSpec, attempt: Path) -> dict[str, int]:
    found = extractor.extract(images.load())
    assert len(found) == len(images.ids), f"{extractor.name} gave {len(found)} vectors for {len(images.ids)} images"
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1), pa.float32()), found.shape[1])
    table = pa.table({"image_id": pa.array(images.ids, pa.string()), "feature": vectors})
    pq.write_table(table, attempt / "features.parquet", compression="zstd")
    return {"images": len(found)}


def read_features(artifact: Artifact, ids: list[str]) -> Features:
    """float32 (n, d), one row an id, in the order of `ids`."""
    table = pq.read_table(artifact.folder / "features.parquet")
    column = table["feature"].combine_chunks()
    matrix = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
    row_of = {image_id: row for row, image_id in enumerate(table["image_id"].to_pylist())}
    return matrix[[row_of[image_id] for image_id in ids]]


def trained_classifier(run: Run, real: RealImages, settings: AttributeSettings, side: int) -> AttributeClassifier:
    """The run's attribute classifier (`eval/attributes`), trained on real training scenes unless it stands already."""
    chosen = settings.model_dump(mode="json") | {"side": side, "seed": run.seed}
    make = partial(_train, real, settings, side, run.seed)
    part = PartSpec("model", {"dataset and view": real.digest})
    folder = run.folder / "eval" / "attributes"
    run_stage(Stage("attribute-classifier", 1, folder, chosen, [part], make, unit="models"), InProcess(), run.logs)
    return load_classifier(folder)


def _train(
    real: RealImages, settings: AttributeSettings, side: int, seed: int, spec: PartSpec, attempt: Path
) -> dict[str, int]:
    keys = real.train(seed, "attributes")[: settings.scenes]
    network, vocabulary = train_classifier(real.pixels(keys, side), [real.truth(key) for key in keys], settings, seed)
    save_classifier(attempt, network, vocabulary, side, settings)
    return {"scenes": len(keys)}
