"""The dataset card: what is in a dataset, for people. Everything that a source wrote is escaped."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts import Receipt, publish_bytes, sum_counts
from data.fetch.reasons import MEANING, Reason
from data.ledger import dropped_counts, ledger_path
from data.plan import SOURCE_FILE, FrozenPlan, read_frozen
from data.reports.text import printable

CARD_FILE = "README.md"
MOST = 30  # rows of a table


def write_card(folder: Path, receipts: list[Receipt], settings: Mapping[str, Any] | None = None) -> None:
    """Write README.md. `settings` are [dataset]'s as they were when it was made; None for a dataset that was not downloaded here."""
    plan = read_frozen(folder)
    assert plan is not None, f"{folder} has no frozen plan"
    counts = sum_counts(receipts)
    licences, splits, sizes = _tally(folder, receipts)
    lines = [
        "# Dataset card", "",
        "Made by unclip-toolkit from the ledger. `plan.parquet` holds every candidate, `ledger/` what became of each and why,",
        "`manifest.json` every digest. This card holds dates and addresses, so no digest covers it.", "",
        "## Source", "", *_source(folder, plan), "",
        "## Counts", "", *_counts(counts), "",
        "Splits are drawn from the image's identity and never change:", "",
        *_table(("split", "stored samples"), splits.items()), "",
        "## Licences", "",
        "As the source states them, without a check. The images belong to their authors; this folder gives nobody the right to",
        "redistribute them. What may be passed on without asking is the list of URLs, captions and digests.", "",
        *_table(("licence", "stored samples"), _largest(licences)), "",
        "## Images", "", *_images(settings, sizes), "",
        *_policy(settings), "",
        "## Filters", "",
        "This folder holds everything that could be stored." if settings else "This folder holds what a view kept of another dataset.",
        "What is trained on is decided by views: `../views/*/plan.json` holds their settings, their parts one row a pair with its",
        "reason, and `python -m data funnel` adds it up.", "",
    ]  # fmt: skip
    publish_bytes(folder / CARD_FILE, "\n".join(lines).encode())


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


def _source(folder: Path, plan: FrozenPlan) -> list[str]:
    frozen = time.strftime("%Y-%m-%d", time.gmtime((folder / SOURCE_FILE).stat().st_mtime))
    lines = [f"Frozen on {frozen} (UTC), seed {plan.made_from['seed']}. `source.json` holds all of it.", ""]
    files: list[tuple[Any, ...]] = []
    others: list[tuple[Any, ...]] = []
    for where, value in _leaves(plan.made_from["source"]):
        if isinstance(value, Mapping):
            files.append((where, value["bytes"], f"`{value['sha256']}`"))
        else:
            others.append((where, value))
    lines += _table(("what", "value"), others)
    lines += ["", *_table(("input file", "bytes", "sha256"), _first(files))] if files else []
    lines += ["", *(f"- not used: {n:,} x {escape(note)}" for note, n in plan.notes.items())] if plan.notes else []
    return lines


def _leaves(value: Any, where: str = "") -> Iterable[tuple[str, Any]]:
    """Nested facts as rows, plain values first; a file's facts (bytes, sha256) stay together, and a long list becomes a number."""
    if not isinstance(value, Mapping) or {"bytes", "sha256"} <= value.keys():
        yield where, value
    elif len(value) > MOST and not any(isinstance(inner, Mapping) for inner in value.values()):
        yield where, f"{len(value):,} files"
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


def _policy(settings: Mapping[str, Any] | None) -> list[str]:
    """How images were asked for, and how to object."""
    removal = [
        "## Opt-out and removal", "",
        "- Lists of URLs, domains, SHA-256 and perceptual hashes (`[dataset.exclude]`) keep images out before or right after download.",
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
