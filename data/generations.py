"""The samples artifact as every reader sees it: generated images with the facts that trace each one.

`samples/<system>/<prompt set>-<settings hash>/` holds `index.parquet` (columns below, one row an image, ordered by
`image_id`) and the PNG files it names. Written by eval, read by eval, humaneval and dashboards.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.pipeline.artifacts import Artifact
from data.pipeline.errors import UserError

SAMPLES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # "<prompt_id>-<sample_index:02d>", unique within the artifact
        ("prompt_id", pa.string()),
        ("caption", pa.string()),
        ("caption_key", pa.string()),  # key of the dataset sample whose caption this is; "" for a free prompt
        ("system", pa.string()),
        ("seed", pa.int64()),
        ("sample_index", pa.int32()),
        ("guidance_prior", pa.float64()),
        ("guidance_decoder", pa.float64()),
        ("steps", pa.int32()),  # of the decoder
        ("file", pa.string()),  # relative to the artifact's folder
        ("sha256", pa.string()),  # of the file
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


def read_samples(artifact: Artifact) -> pa.Table:
    """The index of a complete samples artifact. Raises UserError for another schema or a file name that leaves the folder."""
    table = pq.read_table(artifact.folder / "index.parquet")
    if not table.schema.equals(SAMPLES_SCHEMA):
        raise UserError(
            f"{artifact.folder}/index.parquet has columns {table.column_names}, expected {SAMPLES_SCHEMA.names}"
        )
    for file in table["file"].to_pylist():
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise UserError(f"{artifact.folder}/index.parquet names a file outside its folder: {file!r}")
    return table


def sample_artifacts(run_folder: Path) -> Iterator[Artifact]:
    """Every complete samples artifact of a run, in a fixed order."""
    for manifest in sorted((run_folder / "samples").glob("*/*/manifest.json")):
        yield Artifact(manifest.parent)


def find_samples(run_folder: Path, system: str, prompt_set: str, guidance_decoder: float) -> Artifact:
    """The samples of a system for a prompt set at one guidance scale. Raises UserError for none, listing what there is, and
    for more than one (drawn with other steps, or by a model of another side)."""
    found, seen = [], []
    for artifact in sample_artifacts(run_folder):
        settings = artifact.settings()
        facts = (settings["system"], settings["prompt_set"], settings["guidance_decoder"])
        if facts == (system, prompt_set, guidance_decoder):
            found.append(artifact)
        seen.append("{}/{} at guidance {}".format(*facts))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{len(found)} folders hold samples of {system} for prompt set {prompt_set!r} at guidance {guidance_decoder:g}: "
            f"{' and '.join(str(artifact.folder) for artifact in found)}; delete the outdated one"
        )
    raise UserError(
        f"no samples of {system} for prompt set {prompt_set!r} at guidance {guidance_decoder} under {run_folder}/samples; "
        f"there are: {', '.join(seen) or 'none'}; run `make eval` (python -m eval sample) first"
    )
