"""Where a dataset came from that was not downloaded: resharded from a view of another run."""

import shlex

from data.pipeline.artifacts import Artifact, read_json

MARK = "reshard.json"  # written before anything else in the new dataset's folder: it must never be taken for a download


def is_resharded(dataset: Artifact) -> bool:
    """Whether the folder holds, or is going to hold, a resharded dataset."""
    return (dataset.folder / MARK).exists()


def describe(dataset: Artifact) -> str:
    """One line that says what a resharded dataset is."""
    origin = read_json(dataset.folder / MARK, "origin of the resharded dataset")
    return (
        f"{dataset.folder} was resharded from the view {origin['view']} of the dataset {origin['dataset'][:12]} "
        f"(run {origin['run']}): there is nothing to download"
    )


def require_written(dataset: Artifact) -> Artifact:
    """A resharded dataset that is complete. Raises UserError with the command that goes on with one that is not."""
    origin = read_json(dataset.folder / MARK, "origin of the resharded dataset")
    runs = dataset.folder.parent.parent
    # The config that the origin saved, because what another config says of the view may differ.
    config = shlex.quote(str(runs / origin["run"] / "config.toml"))
    name = dataset.folder.parent.name
    return dataset.require(f"python -m data reshard --config {config} --view {origin['view']} --to {name}")
