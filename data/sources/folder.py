"""Source `folder`: images below a folder, and a CSV with the columns `file,caption`, one row a caption."""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.fetch.files import file_url
from data.pipeline.errors import UserError
from data.sources.candidates import Candidate, Served
from data.sources.facts import cannot_read, facts_of, sizes_as_facts, valid_name
from data.sources.settings import FolderSettings

IMAGE_ENDINGS = frozenset(
    f".{ending}"
    for ending in (
        "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "heif", "heic", "ppm", "pgm", "pnm", "mpo", "apng",
        "jp2", "j2k", "ico", "p7",
    )
)  # fmt: skip


class FolderSource:
    """One candidate per file: those the CSV names, in order of name, and images without a caption (dropped later, counted)."""

    def __init__(self, settings: FolderSettings) -> None:
        self.root = Path(settings.path)
        self.captions = self.root / settings.captions
        self.notes: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        """The captions' digest, and the size of every image: a replaced image is told by its size."""
        sizes = image_sizes(self.root, "dataset.folder.path")
        captions = facts_of([(valid_name(self.captions.name), self.captions)], "dataset.folder.captions")
        return {
            "kind": "folder",
            "captions": captions,
            "images": sizes_as_facts(sizes),
        }

    def candidates(self) -> Iterator[Candidate]:
        """Raises UserError for an unreadable folder or CSV and for missing columns."""
        on_disk = image_sizes(self.root, "dataset.folder.path")
        captions = _read_captions(self.captions)
        for name in sorted(on_disk.keys() | captions.keys()):
            yield Candidate(valid_name(name), file_url(name), tuple(captions.get(name, ())))

    @contextmanager
    def serving(self) -> Iterator[Served]:
        yield Served("folder", self.root.resolve())


def image_sizes(root: Path, setting: str) -> dict[str, int]:
    """Relative name -> bytes of every image file below `root`, in order of name. Raises UserError when it cannot be read."""
    try:
        next(root.iterdir(), None)
        found = {
            p.relative_to(root).as_posix(): p.stat().st_size
            for p in root.rglob("*")
            if p.suffix.lower() in IMAGE_ENDINGS and p.is_file()
        }
    except OSError as error:
        raise UserError(
            f"{setting}: cannot read {root}: {error.strerror}; give the folder that holds the images"
        ) from None
    return dict(sorted(found.items()))


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
            f"{cannot_read('dataset.folder.captions', path, error)}; it is a CSV with the columns file,caption"
        ) from None
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV: {error}") from None
    return found


def _readable(caption: str) -> str:
    """A caption as valid Unicode: bytes that are not UTF-8 as replacement characters."""
    return caption.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
