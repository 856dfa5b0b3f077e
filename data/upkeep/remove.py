"""What a removal sets off: it is recorded, the views are made again, and everything that saw the samples is named."""

from data.run import Run
from data.shards import ShardReader
from data.upkeep.exposure import kept_now, who_saw
from data.upkeep.removal import Entry, record, removed_keys, removed_path
from data.views import build_base_view, build_train_view


def remove(run: Run, found: dict[Entry, list[str]]) -> list[str]:
    """Apply resolved entries; returns what to tell the user, a line each."""
    keys = frozenset(key for of_entry in found.values() for key in of_entry)
    kept = kept_now(run, keys)
    new = record(run, found)
    stored = keys & set(ShardReader(run.dataset).keys())
    lines = [f"{entry}: {len(of_entry):,} candidates" for entry, of_entry in found.items() if of_entry]
    missed = [str(entry) for entry, of_entry in found.items() if not of_entry]
    if missed:
        lines.append(
            f"{len(missed):,} entries name nothing in this dataset: {', '.join(missed[:5])}{' ...' if len(missed) > 5 else ''}; "
            "they are remembered here; put them on the lists of [dataset.exclude] for the next download"
        )
    lines.append(
        f"{len(keys):,} keys are removed, {len(new):,} of them newly; {len(stored):,} have a stored image; "
        f"{len(removed_keys(run)):,} in all: {removed_path(run)}"
    )
    lines += _make_views(run)
    seen = who_saw(run, keys, kept)
    if seen:
        lines.append("These have seen them:")
        lines += [f"  {s.name}: {s.what}; {s.remedy}" for s in seen]
    return lines


def _make_views(run: Run) -> list[str]:
    lines = []
    for name, build in (("base", build_base_view), ("train", build_train_view)):
        view = run.view(name)
        if (view.folder / "plan.json").exists():
            counts = build(run).manifest()["counts"]
            gone = counts.get("dropped_removed_pairs", 0)
            lines.append(
                f"view {name} made again: keeps {counts['kept_pairs']:,} pairs, {gone:,} are left out as removed"
            )
    return lines
