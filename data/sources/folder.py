"""Source `folder`: images below a folder, and a CSV with the columns `file,caption`, one row a caption."""

import csv
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError
from data.fetch.files import file_url
from data.sources.candidates import Candidate
from data.sources.settings import FolderSettings

IMAGE_ENDINGS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".heif",
        ".heic",
        ".ppm",
        ".pgm",
        ".pnm",
        ".mpo",
        ".apng",
        ".jp2",
        ".j2k",
        ".ico",
        ".p7",
    ]
)


def folder_candidates(settings: FolderSettings) -> Iterator[Candidate]:
    """One candidate per file: those the CSV names, in order of name, and images without a caption (dropped later, counted).

    Raises UserError for an unreadable folder or CSV and for missing columns.
    """
    root = Path(settings.path)
    try:
        on_disk = {
            p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.suffix.lower() in IMAGE_ENDINGS
        }
        next(root.iterdir(), None)
    except OSError as error:
        raise UserError(
            f"dataset.folder.path: cannot read {root}: {error.strerror}; give the folder that holds the images"
        ) from None
    captions = _read_captions(root / settings.captions)
    for name in sorted(on_disk | captions.keys()):
        yield Candidate(_printable(name), file_url(name), tuple(captions.get(name, ())))


def _read_captions(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            lacking = {"file", "caption"} - set(rows.fieldnames or ())
            if lacking:
                raise UserError(
                    f"{path} has columns {rows.fieldnames}, needed are file,caption; missing: {', '.join(sorted(lacking))}"
                )
            for row in rows:
                name, caption = (row["file"] or "").strip(), _readable(" ".join((row["caption"] or "").split()))
                if name and caption:
                    found.setdefault(name, []).append(caption)
    except OSError as error:
        raise UserError(
            f"dataset.folder.captions: cannot read {path}: {error.strerror}; it is a CSV with the columns file,caption"
        ) from None
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV: {error}") from None
    return found


def _printable(name: str) -> str:
    """A file's name as valid Unicode: bytes that are not UTF-8 as `\\xff`. Python holds them as surrogates, Parquet refuses those."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _readable(caption: str) -> str:
    """A caption as valid Unicode: bytes that are not UTF-8 as replacement characters."""
    return caption.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
