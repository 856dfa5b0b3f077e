"""Looking at a dataset: samples as text and as contact sheets, also those that were left out, by reason."""

import io
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from data.dataset.ledger import read_ledger
from data.dataset.shards import ShardReader
from data.fetch.reasons import MEANING, Reason
from data.pipeline.artifacts import Artifact, publish_bytes
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from data.pipeline.terminal import printable
from data.reports.finished import FinishedShards, finished_dataset
from data.reports.funnel import dropped_by
from data.views.rules import MEANING as OF_VIEWS

SIDE, WIDTH, GAP, COLUMNS = 200, 300, 12, 4  # pixels: height of an image, width of a cell, space between; cells a row
LINE, LINES = 15, 10  # pixels of a line of text; lines of captions at most
CAPTION_LINES, CAPTION_CHARS = 4, 400  # of one caption
PRINTED_CHARS = 1000  # of one caption, on the terminal


@dataclass(frozen=True)
class Shown:
    """One stored sample: what is printed and drawn of it. `note` is set in red below the key."""

    key: str
    split: str
    width: int
    height: int
    captions: tuple[str, ...]
    url: str
    license: str | None
    note: str = ""


def notes(run: Run) -> list[str]:
    """What is not shown because it is not there yet. Raises UserError where no shard is finished."""
    dataset = finished_dataset(run)
    return [str(dataset)] if isinstance(dataset, FinishedShards) else []


def reason_lines(run: Run) -> list[str]:
    """Every reason that occurs, with its number of samples (download) or pairs (views) and what it means."""
    ledger = read_ledger(finished_dataset(run), columns=["reason"])["reason"]
    lines = [f"{n:>12,} samples  {reason:<26}{MEANING[Reason(reason)]}" for reason, n in _tally(ledger)]
    for name in view_names(run):
        for reason, n in sorted(dropped_by(run, run.view(name)).items(), key=lambda item: -item[1]):
            meaning = OF_VIEWS.get(reason, "a rule of the view's settings")
            lines.append(f"{n:>12,} pairs    {reason:<26}{meaning}  [view {name}]")
    return lines or ["nothing was dropped"]


def _tally(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    counts = Counter({row["values"]: row["counts"] for row in pc.value_counts(column.drop_null()).to_pylist()})
    return counts.most_common()


def view_names(run: Run) -> list[str]:
    """Complete views, the base view first; none of a dataset that is not complete."""
    if not run.dataset.is_complete():
        return []
    found = [path.parent.name for path in (run.folder / "views").glob("*/manifest.json")]
    return sorted(found, key=lambda name: (name != "base", name))


def _decisions(view: Artifact, columns: list[str]) -> pa.Table:
    return pa.concat_tables(
        [pq.read_table(view.folder / f"{r.name}.parquet", columns=columns) for r in view.receipts()]
    )


def is_download_reason(name: str) -> bool:
    return name in set(Reason)


def default_view(run: Run, reason: str | None) -> str | None:
    """The narrowest view; for a reason the first view that gives it (a later one repeats it). None where no view is made.

    Raises UserError for a reason that no view gives."""
    names = view_names(run)
    if reason is None:
        return names[-1] if names else None
    for name in names:
        if reason in _decisions(run.view(name), ["reason"])["reason"].unique().to_pylist():
            return name
    raise UserError(f"nothing was left out as {reason!r}; `python -m data show --reasons` lists the reasons that occur")


def choose_keys(run: Run, view: str | None, reason: str | None, n: int, seed: int) -> list[str]:
    """At most n keys of stored samples, drawn with the seed: those a view keeps, or leaves out for `reason`; without a view, any.

    Raises UserError when there are none, naming what there is, and for n below 1.
    """
    _require_some(n)
    if view is None:
        keys = ShardReader(finished_dataset(run)).keys()
    else:
        artifact = run.view(view)
        if view not in view_names(run):
            raise UserError(
                f"there is no view {view!r}; made are: {', '.join(view_names(run)) or 'none'}; run `make dataset`"
            )
        table = _decisions(artifact, ["key", "keep", "reason"])
        wanted = table["keep"] if reason is None else pc.equal(table["reason"], reason)
        keys = sorted(set(table.filter(wanted)["key"].to_pylist()))
        if not keys and reason is not None:
            known = ", ".join(name for name, _ in _tally(table["reason"])) or "none"
            raise UserError(f"view {view} leaves no pair out as {reason!r}; its reasons: {known}")
    if not keys:
        raise UserError("no sample to show: nothing is stored or kept; see `python -m data funnel`")
    return sorted(random.Random(seed).sample(keys, min(n, len(keys))))


def _require_some(n: int) -> None:
    if n < 1:
        raise UserError(f"--n says how many to show and must be at least 1, got {n}")


def read_shown(run: Run, keys: Sequence[str], view: str | None, reason: str | None) -> list[Shown]:
    """The samples, with the captions that the view keeps, or leaves out for `reason`."""
    reader = ShardReader(finished_dataset(run))
    chosen: dict[str, list[int]] | None = None
    if view is not None:
        table = _decisions(run.view(view), ["key", "caption_index", "keep", "reason"])
        table = table.filter(pc.is_in(table["key"], pa.array(list(keys), pa.string())))
        table = table.filter(table["keep"] if reason is None else pc.equal(table["reason"], reason))
        chosen = {}
        for key, index in zip(table["key"].to_pylist(), table["caption_index"].to_pylist(), strict=True):
            chosen.setdefault(key, []).append(index)
    shown = []
    for key in keys:
        meta = reader.meta(key)
        captions = meta["captions"] if chosen is None else [meta["captions"][i] for i in sorted(chosen[key])]
        shown.append(
            Shown(
                key=key,
                split=meta["split"],
                width=meta["width"],
                height=meta["height"],
                captions=tuple(printable(caption) for caption in captions),
                url=printable(meta["url"]),
                license=printable(meta["license"]) if meta.get("license") else None,
                note=reason or "",
            )
        )
    return shown


def shown_text(samples: Sequence[Shown]) -> str:
    """For the terminal: one block a sample."""
    blocks = []
    for s in samples:
        lines = [f"{s.key}  {s.split}  {s.width} x {s.height}  {s.license or 'licence not stated'}", f"  {s.url}"]
        blocks.append("\n".join(lines + [f"  - {_cut(caption)}" for caption in s.captions]))
    return "\n".join(blocks)


def _cut(text: str) -> str:
    return text if len(text) <= PRINTED_CHARS else f"{text[:PRINTED_CHARS]} ... ({len(text):,} characters)"


def dropped_lines(run: Run, reason: str, n: int, seed: int) -> list[str]:
    """Candidates that were dropped while downloading: key, status, URL and what the log says. Raises UserError for none."""
    _require_some(n)
    dataset = finished_dataset(run)
    ledger = read_ledger(dataset, columns=["key", "url", "reason", "http_status"])
    found = ledger.filter(pc.equal(ledger["reason"], reason)).sort_by("key").to_pylist()
    if not found:
        known = ", ".join(name for name, _ in _tally(ledger["reason"])) or "none"
        raise UserError(f"no candidate was dropped as {reason}; reasons that occur: {known}")
    rows = [found[i] for i in sorted(random.Random(seed).sample(range(len(found)), min(n, len(found))))]
    details = _details(dataset, {row["key"] for row in rows})
    lines = [
        f"{len(found):,} candidates were dropped as {reason}: {MEANING[Reason(reason)]}",
        f"{'key':<11}{'status':<8}URL, detail",
    ]
    for row in rows:
        status = "-" if row["http_status"] is None else str(row["http_status"])
        lines.append(f"{row['key']:<11}{status:<8}{printable(row['url'])[:300]}")
        if detail := details.get(row["key"]):
            lines.append(f"{'':<19}{printable(detail)[:300]}")
    return lines


def _details(dataset: Artifact, keys: set[str]) -> dict[str, str]:
    """What the log says about the keys, the latest attempt's words; parts without a log say nothing."""
    details: dict[str, str] = {}
    wanted = pa.array(sorted(keys), pa.string())
    for receipt in dataset.receipts():
        path = dataset.folder / "log" / f"{receipt.name}.parquet"
        if not path.exists():
            continue
        table = pq.read_table(path, columns=["key", "detail"])
        table = table.filter(pc.is_in(table["key"], wanted))
        found = zip(table["key"].to_pylist(), table["detail"].to_pylist(), strict=True)
        details.update({key: detail or "" for key, detail in found})
    return details


def contact_sheet(run: Run, samples: Sequence[Shown]) -> Image.Image:
    """RGB picture of the samples, four a row, each with its key and captions below."""
    reader, font = ShardReader(finished_dataset(run)), _font()
    below = [_lines_below(sample, font.getlength) for sample in samples]
    columns = min(COLUMNS, len(samples))
    starts = range(0, len(samples), columns)
    heights = [SIDE + LINE * (max(len(lines) for lines in below[i : i + columns]) + 1) for i in starts]
    sheet = Image.new("RGB", (GAP + columns * (WIDTH + GAP), GAP + sum(h + GAP for h in heights)), "white")
    pen, top = ImageDraw.Draw(sheet), GAP
    for start, height in zip(starts, heights, strict=True):
        for column, sample in enumerate(samples[start : start + columns]):
            x, y = GAP + column * (WIDTH + GAP), top
            sheet.paste(_fitted(Image.fromarray(reader.image(sample.key))), (x, y))
            for n, (line, colour) in enumerate(below[start + column]):
                pen.text((x, y + SIDE + 4 + n * LINE), line, colour, font)
        top += height + GAP
    return sheet


def _lines_below(sample: Shown, length: Callable[[str], float]) -> list[tuple[str, str]]:
    """(text, colour) of each line below an image."""
    lines = [(f"{sample.key}  {sample.split}  {sample.width} x {sample.height}", "#52606d")]
    lines += [(sample.note, "#b42318")] if sample.note else []
    return lines + [(line, "#1f2933") for line in caption_lines(sample.captions, WIDTH, length)]


def _fitted(image: Image.Image) -> Image.Image:
    """As large as a cell allows; small images keep square pixels."""
    scale = min(WIDTH / image.width, SIDE / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def write_sheet(run: Run, samples: Sequence[Shown], path: Path) -> None:
    """Draw the contact sheet into a PNG file."""
    out = io.BytesIO()
    contact_sheet(run, samples).save(out, "PNG")
    publish_bytes(path, out.getvalue())


def caption_lines(captions: Sequence[str], width: float, length: Callable[[str], float]) -> list[str]:
    """Captions wrapped to `width` as `length` measures text; what does not fit is cut with dots, or counted."""
    lines: list[str] = []
    for n, caption in enumerate(captions):
        wrapped = _wrap("- " + caption[:CAPTION_CHARS], width, length)
        if len(wrapped) > CAPTION_LINES or len(caption) > CAPTION_CHARS:
            wrapped = [*wrapped[: CAPTION_LINES - 1], "  ..."]
        if len(lines) + len(wrapped) > LINES - 1:
            return [*lines, f"  ({len(captions) - n} more)"]
        lines += wrapped
    return lines


def _wrap(text: str, width: float, length: Callable[[str], float]) -> list[str]:
    """Lines no longer than `width`, broken at spaces, within a word where it is too long (or its language has no spaces)."""
    lines, line = [], ""
    for word in text.split():
        if line and length(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        line = word if not lines else f"  {word}"
        while length(line) > width:
            fits = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or length(line[:n]) <= width)
            lines.append(line[:fits])
            line = f"  {line[fits:]}"
    return [*lines, line]


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Latin, Greek, Cyrillic, Arabic and more."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 12)
