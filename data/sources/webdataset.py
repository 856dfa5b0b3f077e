"""Source `webdataset`: samples of existing tars, grouped as webdataset does; images are read later, as byte ranges of the tars.

A sample is a run of adjacent members whose names agree up to the first dot of the base name
(webdataset.tariterators.base_plus_ext and group_by_keys). Captions come from `.txt` and from `caption` or `captions` in `.json`; the
rest of the JSON is kept. Samples of one key that are not adjacent stay different samples: nothing overwrites another.
"""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data.fetch.files import tar_url
from data.sources.candidates import Candidate, Served
from data.sources.canonical import canonical_url, host_of
from data.sources.facts import cannot_read, facts_of, valid_name
from data.sources.folder import IMAGE_ENDINGS
from data.sources.inputs import find_files
from data.sources.settings import WebdatasetSettings
from data.sources.values import json_value, line, number

SETTING = "dataset.webdataset.path"
MAX_TEXT_BYTES = 16 << 20  # of one .txt or .json; a longer one is treated as absent
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_SPLITS = ("train", "val", "test")
# Of a sample's JSON of ours: what has a place of its own in the plan, or is measured again.
_OWN = frozenset(
    (
        "key", "source_id", "captions", "split", "license", "source_page", "attribution", "attributes", "nsfw", "watermark", "extra",
        "width", "height", "stored_sha256",
    )
)  # fmt: skip


class Range(NamedTuple):
    """Where a member's bytes lie in its tar."""

    offset: int
    size: int


class WebdatasetSource:
    """One candidate per sample, in order of tars and members. A sample without an image is dropped by the download, with a reason."""

    def __init__(self, settings: WebdatasetSettings) -> None:
        self.path = settings.path
        self.notes: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        """Every tar's bytes and sha256."""
        root, names = self._tars()
        return {"kind": "webdataset", "files": facts_of(((valid_name(name), root / name) for name in names), SETTING)}

    @contextmanager
    def serving(self) -> Iterator[Served]:
        root, _ = self._tars()
        yield Served("tars", root)

    def candidates(self) -> Iterator[Candidate]:
        """A damaged tar gives the samples before the damage, and a note. Raises UserError for files that cannot be opened."""
        self.notes.clear()
        root, names = self._tars()
        keyed: bool | None = None
        for name in names:
            seen: Counter[str] = Counter()
            with _open(root / name) as file:
                for key, members in read_samples(file, partial(self._note, name)):
                    seen[key] += 1
                    if seen[key] > 1:
                        self._note(name, "sample whose key another one, not adjacent to it, has")
                    meta = _read_json(file, members.get("json"))
                    bare = key.rpartition("/")[2]
                    ours = _is_ours(meta, bare)
                    keyed = ours if keyed is None else keyed
                    image = next((r for ending, r in members.items() if f".{ending}" in IMAGE_ENDINGS), None)
                    url = tar_url(name, *(image or (None, 0)))
                    if ours:
                        yield _ours(meta, bare, url)
                        continue
                    repeat = f"#{seen[key]}" if seen[key] > 1 else ""
                    source_id = valid_name(f"{name.removesuffix('.tar')}/{key}{repeat}")
                    yield _foreign(meta, line(_read(file, members.get("txt"))), source_id, url, bare if keyed else None)

    def _tars(self) -> tuple[Path, list[str]]:
        return find_files(self.path, SETTING, lambda name: name.endswith(".tar"), ".tar", follow_links=False)

    def _note(self, name: str, why: str) -> None:
        self.notes[f"{why}: {valid_name(name)}"] += 1


def read_samples(file: Any, note: Callable[[str], None]) -> Iterator[tuple[str, dict[str, Range]]]:
    """Key and members (ending in lower case -> bytes) of every sample of a tar, in order; `note` hears of damage."""
    current, members = "", dict[str, Range]()
    for member in _members(file, note):
        match = _NAME.fullmatch(member.name)
        # Links are never followed, and the bytes of a sparse file are not one range.
        if match is None or not member.isreg() or member.issparse():
            continue
        key, ending = match[1], match[2].lower()
        if members and (key != current or ending in members):
            yield current, members
            members = {}
        current = key
        members[ending] = Range(member.offset_data, member.size)
    if members:
        yield current, members


def _members(file: Any, note: Callable[[str], None]) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=0) as tar:
            for member in tar:
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member for ever otherwise
            # tarfile takes a broken header for the end; the true end is a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                note("damaged after the last sample that was read")
            elif file.tell() == tar.offset:
                note("ends without its end marker, it may be cut off")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        note(f"damaged or no plain tar ({line(str(error))}), what follows is lost")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise cannot_read(SETTING, path, error) from None


def _read(file: Any, place: Range | None) -> bytes | None:
    """A member's bytes, leaving the file where tarfile will look for it anyway: it seeks before every header."""
    if place is None or place.size > MAX_TEXT_BYTES:
        return None
    file.seek(place.offset)
    content: bytes = file.read(place.size)
    return content


def _read_json(file: Any, place: Range | None) -> dict[str, Any]:
    try:
        found = json_value(json.loads((_read(file, place) or b"{}").decode("utf-8", "replace")))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_ours(meta: dict[str, Any], key: str) -> bool:
    """Whether the sample's JSON was written by this toolkit."""
    return (
        meta.get("key") == key
        and meta.get("split") in _SPLITS
        and isinstance(meta.get("captions"), list)
        and {"source_id", "stored_sha256"} <= meta.keys()
    )


def _ours(meta: dict[str, Any], key: str, url: str) -> Candidate:
    """Key, split and identity as they were; the hash is that of the bytes in the tar."""
    before = meta.get("extra")
    # What an earlier reading kept (the address on the web, the original's hash) wins over where that reading found it.
    extra = {name: meta[name] for name in meta if name not in _OWN} | (before if isinstance(before, dict) else {})
    attributes = meta.get("attributes")
    return Candidate(
        source_id=line(meta["source_id"]),
        url=url,
        captions=tuple(text for text in map(line, meta["captions"]) if text),
        attributes=attributes if isinstance(attributes, dict) else None,
        split=meta["split"],
        license=line(meta.get("license")) or None,
        source_page=line(meta.get("source_page")) or None,
        attribution=line(meta.get("attribution")) or None,
        key=key,
        expected_hash=line(meta["stored_sha256"]) or None,
        extra=extra,
        nsfw=line(meta.get("nsfw")) or None,
        watermark=number(meta.get("watermark")),
    )


def _foreign(meta: dict[str, Any], text: str, source_id: str, url: str, key: str | None) -> Candidate:
    """Captions of `.txt` and `.json`, each once. The split is drawn from the address that the image came from, if it is known."""
    listed = meta.get("captions")
    found = [text, line(meta.get("caption")), *map(line, listed if isinstance(listed, list) else [listed])]
    origin = meta.get("url")
    known = isinstance(origin, str) and host_of(origin.strip())
    return Candidate(
        source_id=source_id,
        url=url,
        captions=tuple(dict.fromkeys(caption for caption in found if caption)),
        license=line(meta.get("license")) or None,
        key=key,
        extra={name: value for name, value in meta.items() if name not in ("caption", "captions", "license")},
        identity=canonical_url(str(origin).strip()) if known else None,
    )
