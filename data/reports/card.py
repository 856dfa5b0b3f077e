"""The dataset card: what is in a dataset, for people. Everything that a source wrote is escaped."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.ledger import dropped_counts, ledger_path
from data.dataset.plan import SOURCE_FILE, FrozenPlan, read_frozen
from data.dataset.settings import DatasetSettings
from data.fetch.reasons import MEANING, Reason
from data.pipeline.artifacts import Receipt, publish_bytes, sum_counts
from data.pipeline.run import Run
from data.pipeline.terminal import printable
from data.reports.funnel import current_views, dropped_by
from data.views.rules import MEANING as MEANING_OF_VIEWS
from data.views.rules import in_words, rules_of

CARD_FILE = "README.md"
MOST = 30  # rows of a table


def write_card(
    folder: Path, receipts: list[Receipt], settings: Mapping[str, Any] | None = None, views: Sequence[str] = ()
) -> None:
    """Write README.md. `settings` are [dataset]'s as they were when it was made; None for a dataset that was not downloaded here.
    `views` are the lines about the views that filter it."""
    plan = read_frozen(folder)
    assert plan is not None, f"{folder} has no frozen plan"
    counts = sum_counts(receipts)
    licences, splits, sizes = _tally(folder, receipts)
    lines = [
        "# Dataset card", "",
        "Made by unclip-toolkit from the ledger. `plan.parquet` holds every candidate, `ledger/` what became of each and why,",
        "`manifest.json` every digest. This card holds dates and addresses, so no digest covers it.", "",
        "## Source", "", *_source(folder, plan, settings), "",
        "## Counts", "", *_counts(counts), "",
        *_splits(plan), "",
        *_table(("split", "stored samples"), splits.items()), "",
        "## Licences", "",
        "As the source states them, without a check. The images belong to their authors; this folder gives nobody the right to",
        "redistribute them. What may be passed on without asking is the list of URLs, captions and digests.", "",
        *_table(("licence", "stored samples"), _largest(licences)), "",
        "## Images", "", *_images(settings, sizes), "",
        *_policy(plan, settings), "",
        "## Filters", "",
        "This folder holds everything that could be stored; Images and Download name the limits." if settings
        else "This folder holds what a view kept of another dataset.",
        "What is trained on is decided by views, whose parts in `../views` hold one row a pair with its reason.", "",
        *(views or ["No view had been made when this card was written; it is written again with each."]), "",
    ]  # fmt: skip
    publish_bytes(folder / CARD_FILE, "\n".join(lines).encode())


def refresh_card(run: Run) -> None:
    """Write the card of a complete dataset again, with its views as they are now."""
    plan = read_frozen(run.dataset.folder)
    if plan is not None and run.dataset.is_complete():
        downloaded = plan.made_from["source"].get("kind") != "reshard"
        settings = run.config[DatasetSettings].model_dump(mode="json") if downloaded else None
        write_card(run.dataset.folder, run.dataset.receipts(), settings, view_lines(run))


def view_lines(run: Run) -> list[str]:
    """Every rule of the views that are up to date: what it keeps, and how many pairs it dropped."""
    lines: list[str] = []
    for name, view in current_views(run):
        counts, dropped, made_with = view.manifest()["counts"], dropped_by(run, view), view.settings()
        words: dict[str, list[str]] = {}
        for rule in rules_of(made_with):
            words.setdefault(rule.reason, []).append(in_words(rule))
        rows = [(reason, "; ".join(said), dropped.pop(reason, 0)) for reason, said in words.items()]
        rows += [(reason, MEANING_OF_VIEWS.get(reason, ""), n) for reason, n in sorted(dropped.items())]
        lines += [
            f"View `{name}` keeps {counts['kept_pairs']:,} of {counts['pairs']:,} pairs ({counts['kept_samples']:,} samples), recipe: "
            f"{made_with['recipe'] or 'none'}. A rule keeps a pair, or drops it for its reason:", "",
            *_table(("reason", "kept", "pairs dropped"), rows), "",
            *(f"- deviates, {escape(text)}" for text in made_with["deviations"]), "",
        ]  # fmt: skip
    return lines


def _tally(folder: Path, receipts: list[Receipt]) -> tuple[Counter[str], Counter[str], list[int]]:
    """Licences and splits of stored samples, and [stored bytes, smallest side, largest side]."""
    licences: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    total, sides = 0, []
    for receipt in receipts:
        columns = ["license", "split", "reason", "stored_bytes", "width", "height"]
        table = pq.read_table(ledger_path(folder, receipt.name), columns=columns)
        table = table.filter(pc.is_null(table["reason"]))
        for name, tally in (("license", licences), ("split", splits)):
            for entry in pc.value_counts(table[name]).to_pylist():
                tally[entry["values"] or "not stated by the source"] += entry["counts"]
        total += pc.sum(table["stored_bytes"]).as_py() or 0
        if len(table):
            sides += [pc.min(table[s]).as_py() for s in ("width", "height")]
            sides += [pc.max(table[s]).as_py() for s in ("width", "height")]
    return licences, Counter(dict(sorted(splits.items()))), [total, min(sides, default=0), max(sides, default=0)]


def _source(folder: Path, plan: FrozenPlan, settings: Mapping[str, Any] | None) -> list[str]:
    frozen = time.strftime("%Y-%m-%d", time.gmtime((folder / SOURCE_FILE).stat().st_mtime))
    lines = [f"Frozen on {frozen} (UTC), seed {plan.made_from['seed']}. `source.json` holds all of it.", ""]
    files: list[tuple[Any, ...]] = []
    others: list[tuple[Any, ...]] = []
    facts = {name: value for name, value in plan.made_from["source"].items() if name != "exclusion lists"}
    for where, value in _leaves(facts):
        if isinstance(value, Mapping):
            files.append((where, value["bytes"], f"`{value['sha256']}`"))
        elif value not in (None, [], {}):
            others.append((where, value))
    lines += _table(("what", "value"), others[:1] + _inputs(settings, facts.get("kind")) + others[1:])
    lines += ["", *_table(("input file", "bytes", "sha256"), _first(files))] if files else []
    lines += (
        ["", *(f"- not a candidate: {n:,} x {escape(note)}" for note, n in plan.notes.items())] if plan.notes else []
    )
    return lines


def _inputs(settings: Mapping[str, Any] | None, kind: Any) -> list[tuple[str, str]]:
    """Where the input lay, by the settings that name it."""
    given = (settings or {}).get(kind) or {}
    paths = {"path": given.get("path"), "images": given.get("images"), **(given.get("annotations") or {})}
    return [(f"{kind}: {name}", str(Path(path).resolve())) for name, path in paths.items() if isinstance(path, str)]


def _splits(plan: FrozenPlan) -> list[str]:
    """Who decided the splits."""
    shares = plan.made_from.get("split") or {}
    drawn = (
        f"drawn by hashing the seed and the image's identity (val {shares.get('val', 0):g}, test {shares.get('test', 0):g}), which "
        "never changes"
    )
    kind = plan.made_from["source"].get("kind")
    if kind == "coco":
        return ["Splits are the source's official ones, one annotation file each:"]
    if kind == "reshard":
        return ["Splits are those of the dataset that this one was resharded from:"]
    if kind == "webdataset":
        return [f"Splits are those that the samples' JSON says, where this toolkit wrote the tars; else {drawn}:"]
    return [f"Splits are {drawn}:"]


def _leaves(value: Any, where: str = "") -> Iterable[tuple[str, Any]]:
    """Nested facts as rows, plain values first; a file's facts (bytes, sha256) stay together, and files that are known by their size
    alone, the images of a folder, become one row."""
    if not isinstance(value, Mapping) or {"bytes", "sha256"} <= value.keys():
        yield where, value
    elif value and all(isinstance(inner, Mapping) and inner.keys() == {"bytes"} for inner in value.values()):
        yield where, f"{len(value):,} files, {sum(inner['bytes'] for inner in value.values()):,} bytes"
    else:
        for name, inner in sorted(value.items(), key=lambda item: (isinstance(item[1], Mapping), item[0])):
            yield from _leaves(inner, f"{where}/{name}" if where else str(name))


def _counts(counts: Mapping[str, int]) -> list[str]:
    samples, pairs = dropped_counts(counts, "samples"), dropped_counts(counts, "pairs")
    rows: list[tuple[Any, ...]] = [("planned", counts["planned_samples"], counts["planned_pairs"], "")]
    for reason, n in sorted(samples.items(), key=lambda item: (-item[1], item[0])):
        rows.append((f"dropped: {reason}", n, pairs.get(reason, 0), MEANING[Reason(reason)]))
    rows.append(("stored", counts["stored_samples"], counts["stored_pairs"], ""))
    return _table(("", "samples", "pairs", "meaning"), rows)


def _images(settings: Mapping[str, Any] | None, sizes: list[int]) -> list[str]:
    total, smallest, largest = sizes
    lines = [f"{total:,} bytes of stored images, sides from {smallest} to {largest} pixels."]
    if settings is None:
        return [*lines, "Stored bytes are those of the dataset that this one was resharded from."]
    return [*lines, "", *_table(("[dataset.image]", "value"), sorted(settings["image"].items()))]


def _policy(plan: FrozenPlan, settings: Mapping[str, Any] | None) -> list[str]:
    """How images were asked for, and how to object."""
    lists = plan.made_from["source"].get("exclusion lists") or {}
    rows = [(name, f["name"], f.get("entries", "?"), f"`{f['sha256']}`") for name, f in lists.items()]
    applied = _table(("exclusion list of", "file", "entries", "sha256"), rows) if rows else [
        "No exclusion list (`[dataset.exclude]`: URLs, domains, SHA-256, perceptual hashes) was applied."
    ]  # fmt: skip
    removal = [
        "## Opt-out and removal", "", *applied, "",
        "- `python -m data remove --list FILE` takes images out of every view and names what has seen them;",
        "  `python -m data reshard` writes the dataset anew without their bytes.",
    ]  # fmt: skip
    if settings is None:
        return removal
    fetch = settings["fetch"]
    tag = (
        "are not stored" if fetch["respect_robots_tag"] else "ARE STORED, by `dataset.fetch.respect_robots_tag = false`"
    )
    robots = "is obeyed" if fetch["respect_robots_txt"] else "is not read (`dataset.fetch.respect_robots_txt = false`)"
    contact = escape(fetch["contact"]) if fetch["contact"] else "not given (`dataset.fetch.contact`)"
    return [
        "## Download", "",
        f"- User agent: {escape(fetch['user_agent'])}; contact: {contact}",
        f"- Images whose server sends an X-Robots-Tag with noai, noimageai, noindex, noimageindex, none or noml {tag}.",
        f"- robots.txt {robots}.",
        f"- At most {fetch['per_host']} requests at a time to one host"
        + (f" and {fetch['per_host_rate']:g} a second" if fetch["per_host_rate"] else "") + ", over all workers.",
        "- Private addresses " + ("are allowed." if fetch["allow_private_hosts"] else "are refused."), "",
        *removal,
    ]  # fmt: skip


def _largest(tally: Counter[str]) -> list[tuple[str, int]]:
    rows = sorted(tally.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(n for _, n in rows[MOST:])
    return rows[:MOST] + ([(f"{len(rows) - MOST} others", rest)] if rest else [])


def _first(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return rows[:MOST] + ([(f"and {len(rows) - MOST:,} more", "", "")] if len(rows) > MOST else [])


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    """A Markdown table; numbers are given with thousands separated, text is escaped (code that we wrote stays code)."""

    def cell(value: Any) -> str:
        if isinstance(value, int) and not isinstance(value, bool):
            return f"{value:,}"
        text = str(value)
        return text if re.fullmatch(r"`[0-9a-f]*`", text) else escape(text)

    lines = [" | ".join(("", *head, "")).strip(), " | ".join(("", *["---"] * len(head), "")).strip()]
    return lines + [" | ".join(("", *map(cell, row), "")).strip() for row in rows]


def escape(text: str) -> str:
    """A source's text on one Markdown line, with nothing in it that Markdown or HTML would act on."""
    text = " ".join(printable(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", text)[:500]
