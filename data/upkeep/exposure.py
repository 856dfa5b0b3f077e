"""Which artifacts of a run have seen given samples, from what they recorded about their inputs. In doubt, they have."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.ledger import stored_keys
from data.dataset.shards import ShardReader
from data.pipeline.artifacts import Artifact
from data.pipeline.errors import UserError
from data.pipeline.lineage import StageRow, artifacts_of
from data.pipeline.run import Run
from data.views.reading import kept_pairs

VIEWS = "views/"
KEY_COLUMNS = ("key", "caption_key", "image_id")  # columns that may hold keys of samples


@dataclass(frozen=True)
class Seen:
    """An artifact (by its path in the run folder), what it has of the samples, and how to be rid of it."""

    name: str
    what: str
    remedy: str


def kept_now(run: Run, keys: frozenset[str]) -> dict[str, frozenset[str]]:
    """Digest of each complete view -> which of `keys` it keeps. To be asked before the views are made again."""
    wanted = pa.array(sorted(keys), pa.string())
    found = {}
    for path in sorted((run.folder / "views").glob("*/manifest.json")):
        view = Artifact(path.parent)
        column = kept_pairs(view)["key"]
        found[view.digest()] = frozenset(column.filter(pc.is_in(column, wanted)).to_pylist())
    return found


def who_saw(run: Run, keys: frozenset[str], kept: Mapping[str, frozenset[str]]) -> list[Seen]:
    """Artifacts that hold samples of `keys` or were made from something that does. `kept` comes from `kept_now`."""
    stored = sorted(keys & set(ShardReader(run.dataset).keys()))
    if not stored:
        return []
    parts = _parts_of(run.dataset, stored)
    seen: list[Seen] = []
    names: set[str] = set()
    for row, name, artifact in artifacts_of(run):
        if name.startswith(VIEWS) and row.settings is not None:  # the config's own: made again at once, without them
            continue
        what = _by_rows(row, artifact, stored, parts) or _by_lineage(artifact, kept, names)
        if what:
            seen.append(Seen(name, what, row.remedy))
            names.add(name)
    return seen


def _parts_of(dataset: Artifact, stored: list[str]) -> dict[str, int]:
    """Part -> how many of the stored keys it holds."""
    wanted = pa.array(stored, pa.string())
    held = {}
    for receipt in dataset.receipts():
        n = pc.sum(pc.is_in(stored_keys(dataset, receipt.name), wanted)).as_py()
        if n:
            held[receipt.name] = n
    return held


def _by_rows(row: StageRow, artifact: Artifact, stored: list[str], parts: Mapping[str, int]) -> str | None:
    """What an artifact's own files hold of the samples."""
    if row.holds == "bytes":
        return f"its shards hold the bytes of {len(stored):,} of them"
    if row.holds == "rows by part":
        held = [part for part in parts if artifact.receipt(part) is not None]
        n = sum(parts[part] for part in held)
        return (
            f"holds rows of {n:,} of them, in part{'s' if len(held) > 1 else ''} {', '.join(held[:8])}"
            if held
            else None
        )
    return _rows_in(artifact.folder, stored) if row.holds == "keys" else None


def _rows_in(folder: Path, stored: list[str]) -> str | None:
    wanted = pa.array(stored, pa.string())
    for path in sorted(folder.glob("*.parquet")):
        for column in KEY_COLUMNS:
            if column in pq.read_schema(path).names:
                values = pq.read_table(path, columns=[column])[column]
                n = len(pc.unique(values.filter(pc.is_in(values, wanted))))
                if n:
                    return f"{path.name} names {n:,} of them"
    return None


def _inputs(artifact: Artifact) -> dict[str, str]:
    """Artifact -> digest, of everything that any part was made from (parts of artifacts by the artifact's name). Raises UserError for
    a plan of an earlier version of the toolkit."""
    found = {of.partition(":")[0]: digest for inputs in artifact.inputs().values() for of, digest in inputs}
    return {name.removeprefix("@"): digest for name, digest in found.items()}  # `@clip` is the identity that `clip` has


def _by_lineage(artifact: Artifact, kept: Mapping[str, frozenset[str]], seen: set[str]) -> str | None:
    """Whether what the artifact was made from has seen any."""
    try:
        inputs = _inputs(artifact)
    except UserError:
        return "may have seen them: a version of the toolkit made it that recorded its inputs otherwise"
    return _by_view(inputs, kept) or _by_inputs(inputs, seen)


def _by_view(inputs: Mapping[str, str], kept: Mapping[str, frozenset[str]]) -> str | None:
    """Whether the view that the artifact was made from kept any; a view that is gone may have."""
    for name, digest in inputs.items():
        if not name.startswith(VIEWS):
            continue
        if digest not in kept:
            return "may have seen them: it was made from a view that no longer stands"
        if kept[digest]:
            return f"was made from a view that kept {len(kept[digest]):,} of them"
    return None


def _by_inputs(inputs: Mapping[str, str], seen: set[str]) -> str | None:
    """Whether the artifact was made from one that saw them. What is made from the dataset itself or from the cache reads them
    through a view, or holds rows of its own."""
    through = [name for name in inputs if name in seen and name not in ("dataset", "embeddings")]
    return f"was made with {through[0]}, which saw them" if through else None
