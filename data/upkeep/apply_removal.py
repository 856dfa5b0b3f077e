"""What a removal sets off: it is recorded, the views are made again, and everything that saw the samples is named."""

from data.dataset.shards import ShardReader
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import Executor
from data.pipeline.run import Run
from data.pipeline.terminal import counted
from data.upkeep.exposure import kept_now, who_saw
from data.views.build import build_base_view, build_train_view
from data.views.removal import Entry, record, removed_keys, removed_path, with_copies


def remove(run: Run, found: dict[Entry, list[str]], executor: Executor) -> list[str]:
    """Apply resolved entries; returns what to tell the user, a line each."""
    named = frozenset(key for of_entry in found.values() for key in of_entry)
    keys = with_copies(run, named)
    kept, before = kept_now(run, keys), removed_keys(run)
    record(run, found)
    now = removed_keys(run)
    stored = keys & set(ShardReader(run.dataset).keys())
    lines = [f"{entry}: {counted(len(of_entry), 'candidate')}" for entry, of_entry in found.items() if of_entry]
    if copies := sorted(keys - named):
        lines.append(
            f"{counted(len(copies), 'more candidate')} with the same original or stored bytes: {_some(copies)}; "
            "the image is what goes, whatever its address"
        )
    if missed := [str(entry) for entry, of_entry in found.items() if not of_entry]:
        lines.append(
            f"{counted(len(missed), 'entry', 'entries')} without a candidate so far: {_some(missed)}; what a later retry stores is "
            "held against them; put them on the lists of [dataset.exclude] for the next download"
        )
    lines.append(
        f"{counted(len(keys), 'key')} named, {len(keys - before):,} of them newly removed, {len(stored):,} with a stored image; "
        f"{len(now):,} removed in all: {removed_path(run)}"
    )
    lines += _make_views(run, executor)
    seen = who_saw(run, keys, kept)
    if seen:
        lines.append("These have seen them:")
        lines += [f"  {s.name}: {s.what}; {s.remedy}" for s in seen]
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _make_views(run: Run, executor: Executor) -> list[str]:
    lines = []
    for name, build in (("base", build_base_view), ("train", build_train_view)):
        view = run.view(name)
        if (view.folder / "plan.json").exists():
            try:
                counts = build(run, executor).manifest()["counts"]
            except UserError as error:
                if error.code not in (Code.STALE, Code.MISSING):
                    raise
                lines.append(f"view {name} could not be made again, and is stale until it is: {error}")
                continue
            gone = counts.get("dropped_removed_pairs", 0)
            lines.append(
                f"view {name} made again: keeps {counted(counts['kept_pairs'], 'pair')}, {gone:,} left out as removed"
            )
    return lines
