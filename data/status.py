"""What a run has, what is incomplete or stale, and which command comes next."""

from dataclasses import dataclass

from data.artifacts import Artifact
from data.run import Run

# In the order they are made; the command that makes each.
ORDER = (
    ("dataset", "make dataset"),
    ("views/base", "make dataset"),
    ("clip", "make clip"),
    ("embeddings", "make embeddings"),
    ("scores/similarity", "make embeddings"),
    ("views/train", "make embeddings"),
    ("models/prior", "make train"),
    ("models/decoder", "make train"),
    ("models/glide", "make train"),
    ("samples", "make eval"),
    ("eval", "make eval"),
    ("humaneval/study", "make eval"),
)


@dataclass(frozen=True)
class StageStatus:
    name: str
    state: str  # complete | incomplete | missing | stale
    detail: str
    command: str


def run_status(run: Run, without: frozenset[str] = frozenset()) -> list[StageStatus]:
    """One line per stage. `without` names stages that the config does not ask for (a CLIP that is not trained here)."""
    return [_status(run, name, command) for name, command in ORDER if name not in without]


def next_command(statuses: list[StageStatus]) -> str | None:
    return next((s.command for s in statuses if s.state != "complete"), None)


def _status(run: Run, name: str, command: str) -> StageStatus:
    folder = run.folder / name
    nested = sorted(p.parent for p in folder.glob("**/plan.json")) if name in ("samples", "eval") else [folder]
    if not nested or not (nested[0] / "plan.json").exists():
        return StageStatus(name, "missing", "", command)
    artifacts = [Artifact(path) for path in nested]
    incomplete = [a for a in artifacts if not a.is_complete()]
    if incomplete:
        plan = incomplete[0].plan_json() or {"parts": []}
        done = sum(incomplete[0].standing(part["name"]) is not None for part in plan["parts"])
        return StageStatus(
            name, "incomplete", f"{done} of {len(plan['parts'])} parts of {incomplete[0].folder}", command
        )
    why = next((w for a in artifacts if (w := _stale(run, name, a))), "")
    if why:
        return StageStatus(name, "stale", why, command)
    counts = artifacts[0].manifest()["counts"]
    shown = (
        ", ".join(f"{k} {v:,}" for k, v in counts.items() if not k.startswith("dropped"))
        if len(artifacts) == 1
        else f"{len(artifacts)} artifacts"
    )
    return StageStatus(name, "complete", shown, command)


def _stale(run: Run, name: str, artifact: Artifact) -> str:
    """Why a complete artifact no longer matches what it was made from; empty when it does."""
    sources = {
        "views/base": (run.dataset, "ledger", lambda n: f"ledger/{n}.parquet"),
        "embeddings": (run.dataset, "shard", lambda n: f"shards/{n}.tar"),
        "scores/similarity": (run.embeddings, "embeddings", lambda n: f"{n}.parquet"),
        "views/train": (run.view("base"), "base", lambda n: f"{n}.parquet"),
    }
    plan = artifact.plan_json()
    if name not in sources or plan is None:
        return ""
    source, input_name, file_of = sources[name]
    for part in plan["parts"]:
        if input_name not in part["inputs"]:
            continue
        standing = source.standing(part["name"])
        if standing is None or standing.files[file_of(part["name"])]["sha256"] != part["inputs"][input_name]:
            return f"part {part['name']} of {source.folder} changed after it was made"
    return ""
