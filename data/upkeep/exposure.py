"""Which artifacts of a run have seen given samples, from what they recorded about their inputs. In doubt, they have."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.shards import ShardReader
from data.pipeline.artifacts import Artifact, fingerprint
from data.pipeline.run import Run
from data.views.reading import kept_pairs

VIEW_INPUTS = ("view", "dataset and view")  # names under which artifacts record the view they were made from
KEY_COLUMNS = ("key", "caption_key", "image_id")  # columns that may hold keys of samples
# Order of the report, and what makes each anew.
REMEDY = (
    ("dataset", "python -m data reshard --view base --to NAME, then delete this run's folder"),
    ("embeddings", "delete it, or reshard and run `make embeddings` there"),
    ("scores", "delete it, or reshard and run `make dataset embeddings` there"),
    ("clip", "delete it and run `make clip embeddings`"),
    ("models", "delete it and run `make train`"),
    ("prompts", "delete it and run `make eval`"),
    ("samples", "delete it and run `make eval`"),
    ("eval", "delete it and run `make eval`"),
    ("humaneval", "delete it and run `make eval`"),
)


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
        kept = frozenset(column.filter(pc.is_in(column, wanted)).to_pylist())
        found[view.digest()] = kept
        if run.dataset.is_complete():
            found[fingerprint([run.dataset.digest(), view.digest()])] = kept
    return found


def who_saw(run: Run, keys: frozenset[str], kept: Mapping[str, frozenset[str]]) -> list[Seen]:
    """Artifacts that hold samples of `keys` or were made from something that does. `kept` comes from `kept_now`."""
    stored = sorted(keys & set(ShardReader(run.dataset).keys()))
    if not stored:
        return []
    seen = {"dataset": f"its shards hold the bytes of {len(stored):,} of them"}
    tainted = {run.dataset.digest()}
    parts = _parts_of(run.dataset, stored)
    for name, artifact in _others(run):
        what = _by_rows(name, artifact, stored, parts) or _by_view(artifact, kept) or _by_inputs(artifact, tainted)
        if what:
            seen[name] = what
            if name.split("/")[0] in ("clip", "models", "prompts", "samples") and artifact.is_complete():
                tainted.add(artifact.digest())
    if any(name.split("/")[0] in ("models", "samples", "clip") or name.startswith("eval/") for name in seen):
        for name in ("eval/report.html", "eval/metrics.parquet"):
            if (run.folder / name).exists():
                seen[name] = "computed from the above"
        if (run.folder / "humaneval" / "study").exists():
            seen["humaneval/study"] = "shows images of the samples above"
    remedies = dict(REMEDY)
    return [
        Seen(name, what, remedies.get(name.split("/")[0], "delete it and make it again")) for name, what in seen.items()
    ]


def _others(run: Run) -> Iterator[tuple[str, Artifact]]:
    """Every other artifact that is made from the dataset, in the order they are made."""
    order = [name for name, _ in REMEDY]
    found = []
    for path in run.folder.glob("**/plan.json"):
        name = path.parent.relative_to(run.folder).as_posix()
        room = name.split("/")[0]
        if room in order and name not in ("dataset", "humaneval/study") and "scratch" not in path.parts:
            found.append((order.index(room), name, Artifact(path.parent)))
    for _, name, artifact in sorted(found, key=lambda item: item[:2]):
        yield name, artifact


def _parts_of(dataset: Artifact, stored: list[str]) -> dict[str, int]:
    """Part -> how many of the stored keys it holds."""
    wanted = pa.array(stored, pa.string())
    held = {}
    for receipt in dataset.receipts():
        ledger = pq.read_table(dataset.folder / "ledger" / f"{receipt.name}.parquet", columns=["key", "reason"])
        n = pc.sum(pc.and_(pc.is_null(ledger["reason"]), pc.is_in(ledger["key"], wanted))).as_py()
        if n:
            held[receipt.name] = n
    return held


def _by_rows(name: str, artifact: Artifact, stored: list[str], parts: Mapping[str, int]) -> str:
    """What an artifact's own tables hold of the samples."""
    if name == "embeddings" or name.startswith("scores/"):
        held = [part for part in parts if artifact.standing(part) is not None]
        n = sum(parts[part] for part in held)
        if held:
            return f"holds rows of {n:,} of them, in part{'s' if len(held) > 1 else ''} {', '.join(held[:8])}"
    return (
        _rows_in(artifact.folder, stored)
        if name.startswith(("scores/", "eval/features", "prompts/", "samples/"))
        else ""
    )


def _rows_in(folder: Path, stored: list[str]) -> str:
    wanted = pa.array(stored, pa.string())
    for path in sorted(folder.glob("*.parquet")):
        for column in KEY_COLUMNS:
            if column in pq.read_schema(path).names:
                values = pq.read_table(path, columns=[column])[column]
                n = len(pc.unique(values.filter(pc.is_in(values, wanted))))
                if n:
                    return f"{path.name} names {n:,} of them"
    return ""


def _by_view(artifact: Artifact, kept: Mapping[str, frozenset[str]]) -> str:
    """Whether the view that the artifact was made from kept any; a view that is gone may have."""
    for part in (artifact.plan_json() or {"parts": []})["parts"]:
        for name in VIEW_INPUTS:
            digest = part["inputs"].get(name)
            if digest is None:
                continue
            if digest not in kept:
                return "may have seen them: it was made from a view that no longer stands"
            if kept[digest]:
                return f"was made from a view that kept {len(kept[digest]):,} of them"
    return ""


def _by_inputs(artifact: Artifact, tainted: set[str]) -> str:
    """Whether the artifact was made from one that saw them."""
    for part in (artifact.plan_json() or {"parts": []})["parts"]:
        for name, digest in part["inputs"].items():
            if name != "dataset" and digest in tainted:
                return f"was made with {name}, which saw them"
    return ""
