"""Source `coco`: MS-COCO caption annotations, one JSON file per official split; several captions an image.

Layout (https://cocodataset.org/#format-data): `images` with id, file_name, coco_url, flickr_url and license; `annotations` with
image_id, id and caption; `licenses` with id and name.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data.fetch.files import file_url
from data.pipeline.errors import UserError
from data.sources.candidates import Candidate, Served
from data.sources.facts import cannot_read, facts_of, sizes_as_facts, valid_name
from data.sources.folder import image_sizes
from data.sources.settings import CocoSettings
from data.sources.values import line

# An image that two files list belongs to the more protected split.
SPLITS: tuple[Literal["test", "val", "train"], ...] = ("test", "val", "train")


class CocoSource:
    """One candidate per image, named by its COCO id; captions in order of their ids; the split is the file's."""

    def __init__(self, settings: CocoSettings) -> None:
        self.files = {split: Path(settings.annotations[split]) for split in SPLITS if split in settings.annotations}
        if not self.files:
            raise UserError('dataset.coco.annotations names no file; give e.g. { train = "captions_train2017.json" }')
        self.images = Path(settings.images) if settings.images is not None else None
        self.notes: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        """Every annotation file's name, bytes and sha256, and the sizes of the local images."""
        files = {
            split: {"name": valid_name(path.name), **facts_of([("", path)], f"dataset.coco.annotations.{split}")[""]}
            for split, path in self.files.items()
        }
        sizes = {} if self.images is None else image_sizes(self.images, "dataset.coco.images")
        return {
            "kind": "coco", "annotations": files, "local images": self.images is not None,
            "images": sizes_as_facts(sizes),
        }  # fmt: skip

    @contextmanager
    def serving(self) -> Iterator[Served]:
        yield Served("web") if self.images is None else Served("folder", self.images.resolve())

    def candidates(self) -> Iterator[Candidate]:
        """Raises UserError for a file that is unreadable or holds no captions."""
        self.notes.clear()
        local = None if self.images is None else _by_name(image_sizes(self.images, "dataset.coco.images"))
        seen: set[str] = set()
        for split, path in self.files.items():
            content = _read_annotations(path, f"dataset.coco.annotations.{split}")
            licences = {
                entry.get("id"): entry.get("name") for entry in content.get("licenses", ()) if isinstance(entry, dict)
            }
            captions = self._captions(content["annotations"], path)
            for image in content["images"]:
                identity = line(image.get("id")) if isinstance(image, dict) else ""
                if not identity or identity in seen:
                    self.notes[f"image of {path.name} without an id, or listed before"] += 1
                    continue
                seen.add(identity)
                texts = (text for _, text in sorted(captions.pop(image["id"], ())))
                yield _candidate(image, split, tuple(texts), licences, local)
            if captions:
                self.notes[f"image with captions in {path.name} that the file does not list"] += len(captions)

    def _captions(self, annotations: list[Any], path: Path) -> dict[Any, list[tuple[int, str]]]:
        """Image id -> (annotation id, caption) of its captions that are not empty."""
        found: dict[Any, list[tuple[int, str]]] = {}
        for entry in annotations:
            if not isinstance(entry, tuple):
                self.notes[f"annotation of {path.name} without image_id and caption"] += 1
                continue
            image, number, caption = entry
            text = line(caption)
            if text:
                found.setdefault(image, []).append((number if isinstance(number, int) else 0, text))
        return found


def _candidate(
    image: dict[str, Any],
    split: str,
    captions: tuple[str, ...],
    licences: dict[Any, Any],
    local: dict[str, str] | None,
) -> Candidate:
    name = line(image.get("file_name"))
    found = name if local is None else local.get(name) or local.get(PurePosixPath(name).name) or name
    return Candidate(
        source_id=line(image["id"]),
        url=line(image.get("coco_url")) if local is None else file_url(found),
        captions=captions,
        split=split,
        license=line(licences.get(image.get("license"))) or None,
        source_page=line(image.get("flickr_url")) or None,
    )


def _read_annotations(path: Path, setting: str) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            found = json.load(file, object_hook=_slim)
    except (OSError, ValueError, RecursionError) as error:
        raise cannot_read(setting, path, error) from None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), list) for name in ("images", "annotations")):
        there = ", ".join(found) if isinstance(found, dict) else type(found).__name__
        raise UserError(f"{setting}: {path} holds {there}; COCO's captions_*.json hold images and annotations")
    if found["annotations"] and not any(isinstance(entry, tuple) for entry in found["annotations"]):
        raise UserError(f"{setting}: {path} holds annotations without captions; give a captions_*.json")
    return found


def _slim(entry: dict[str, Any]) -> Any:
    """A caption's annotation as a tuple while parsing: half a million of them take a third of the memory."""
    image = entry.get("image_id")
    if "caption" in entry and isinstance(image, int | str):
        return image, entry.get("id"), entry["caption"]
    return entry


def _by_name(names: dict[str, int]) -> dict[str, str]:
    """Relative path and bare file name -> relative path; of files of one name the first in order."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(PurePosixPath(name).name, name)
    return found | {name: name for name in names}
