"""Generated images as every reader sees them: what a system drew for a prompt set, with the facts that trace each image.

`generations/<system>/<prompt set>-<settings hash>/` holds `index.parquet` (columns below, one row an image, ordered by
`image_id`) and the PNG files it names. Written by eval, read by eval, humaneval and dashboards.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.pipeline.artifacts import Artifact
from data.pipeline.errors import Code, UserError

GENERATIONS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # "<prompt_id>-<image_index:02d>", unique within the artifact
        ("prompt_id", pa.string()),
        ("caption", pa.string()),
        ("caption_key", pa.string()),  # key of the dataset sample whose caption this is; "" for a free prompt
        ("system", pa.string()),
        ("seed", pa.int64()),
        ("image_index", pa.int32()),
        ("guidance_prior", pa.float64()),
        ("guidance_decoder", pa.float64()),
        ("steps", pa.int32()),  # of the decoder
        ("file", pa.string()),  # relative to the artifact's folder
        ("sha256", pa.string()),  # of the file
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


def read_generations(artifact: Artifact) -> pa.Table:
    """The index of a complete set of generated images. Raises UserError for another schema or a file name that leaves the folder."""
    table = pq.read_table(artifact.folder / "index.parquet")
    if not table.schema.equals(GENERATIONS_SCHEMA):
        raise UserError(
            f"{artifact.folder}/index.parquet has columns {table.column_names}, expected {GENERATIONS_SCHEMA.names}; "
            "run `python -m eval generate` again", Code.OTHER_VERSION,
        )  # fmt: skip
    for file in table["file"].to_pylist():
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise UserError(f"{artifact.folder}/index.parquet names a file outside its folder: {file!r}", Code.DAMAGED)
    return table


def generation_artifacts(run_folder: Path) -> Iterator[Artifact]:
    """Every complete set of generated images of a run, in a fixed order."""
    for manifest in sorted((run_folder / "generations").glob("*/*/manifest.json")):
        yield Artifact(manifest.parent)


def find_generations(run_folder: Path, system: str, prompt_set: str, guidance_decoder: float) -> Artifact:
    """The generated images of a system for a prompt set at one guidance scale. Raises UserError for none, listing what there is, and
    for more than one (drawn with other steps, or by a model of another side)."""
    found, seen = [], []
    for artifact in generation_artifacts(run_folder):
        settings = artifact.settings()
        facts = (settings["system"], settings["prompt_set"], settings["guidance_decoder"])
        if facts == (system, prompt_set, guidance_decoder):
            found.append(artifact)
        seen.append("{}/{} at guidance {}".format(*facts))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{len(found)} folders hold generated images of {system} for prompt set {prompt_set!r} at guidance {guidance_decoder:g}: "
            f"{' and '.join(str(artifact.folder) for artifact in found)}; delete the outdated one", Code.STALE,
        )  # fmt: skip
    raise UserError(
        f"no generated images of {system} for prompt set {prompt_set!r} at guidance {guidance_decoder} under {run_folder}/generations; "
        f"there are: {', '.join(seen) or 'none'}; run `make eval` (python -m eval generate) first", Code.MISSING,
    )  # fmt: skip
