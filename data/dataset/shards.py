"""Shards: one tar of samples in webdataset's layout, the same bytes for the same samples.

Members of a sample, in this order: `<key>.<jpg|png|webp>`, `<key>.json` (everything known), `<key>.txt` (caption 0).
Samples are sorted by key; owner, mode and time are constants.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from data.pipeline.artifacts import Artifact, canonical_json
from data.pipeline.errors import Code, UserError

IMAGE_SUFFIXES = ("jpg", "png", "webp")


@dataclass(frozen=True)
class Sample:
    """One stored sample: encoded image bytes and the JSON beside it (`captions`, `split`, `url`, sizes, hashes ...)."""

    key: str
    image: bytes
    suffix: str
    meta: dict[str, Any]


class ShardWriter:
    """Writes samples, which must come in ascending order of key, into a tar whose bytes depend on nothing else.

    The bytes are those of `tarfile` in USTAR format (a test compares); its general headers took more time than the data.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=1 << 20)
        self._last = ""
        self._size = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            self.close()
        else:
            self._file.close()

    def write(self, sample: Sample) -> None:
        caption = sample.meta["captions"][0].encode()
        self.write_members(sample.key, sample.image, sample.suffix, canonical_json(sample.meta), caption)

    def write_members(self, key: str, image: bytes, suffix: str, meta: bytes, caption: bytes) -> None:
        """One sample whose JSON and caption are bytes already."""
        assert self._last < key, f"samples must be sorted by key: {key} after {self._last}"
        self._last = key
        self._add(f"{key}.{suffix}", image)
        self._add(f"{key}.json", meta)
        self._add(f"{key}.txt", caption)

    def _add(self, name: str, content: bytes) -> None:
        padding = b"\0" * (-len(content) % tarfile.BLOCKSIZE)
        self._file.writelines((_tar_header(name, len(content)), content, padding))
        self._size += tarfile.BLOCKSIZE + len(content) + len(padding)

    def close(self) -> None:
        """End the archive: two empty blocks, then up to a whole record."""
        end = 2 * tarfile.BLOCKSIZE
        self._file.write(b"\0" * (end + -(self._size + end) % tarfile.RECORDSIZE))
        self._file.close()


def _tar_header(name: str, size: int) -> bytes:
    """The header of a regular file: constant owner, mode and time."""
    named = name.encode().ljust(_NAME.stop, b"\0")
    assert len(named) == _NAME.stop and size < 8**11, f"{name} of {size} bytes does not fit a tar header"
    sized = b"%011o\0" % size
    total = _TEMPLATE_SUM + sum(named) + sum(sized)
    return b"".join((named, _AFTER_NAME, sized, _AFTER_SIZE, b"%06o\0" % total, _AFTER_SUM))


# The parts of a header that never change, and the sum of their bytes with the checksum's own field as spaces.
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 155)
_TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_AFTER_NAME, _AFTER_SIZE = _TEMPLATE[_NAME.stop : _SIZE.start], _TEMPLATE[_SIZE.stop : _CHECKSUM.start]
_AFTER_SUM = _TEMPLATE[_CHECKSUM.stop :]
_TEMPLATE_SUM = sum(_AFTER_NAME) + sum(_AFTER_SIZE) + sum(_AFTER_SUM) + 7 * ord(" ")


def read_shard(path: Path) -> Iterator[Sample]:
    """Every sample of a shard in order. Raises UserError for a tar that is damaged or is not laid out as above."""
    try:
        with tarfile.open(path, "r:") as tar:
            parts: dict[str, bytes] = {}
            current = ""
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if parts and key != current:
                    yield _assemble(path, current, parts)
                    parts = {}
                current = key
                content = tar.extractfile(member)
                assert content is not None
                parts[suffix] = content.read()
            if parts:
                yield _assemble(path, current, parts)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{path} is damaged ({error}); run `python -m data verify`, then `make dataset`", Code.DAMAGED
        ) from None


def _assemble(path: Path, key: str, parts: dict[str, bytes]) -> Sample:
    suffix = next((s for s in IMAGE_SUFFIXES if s in parts), None)
    if suffix is None or "json" not in parts:
        raise UserError(f"{path}: sample {key} lacks its image or its JSON; it has {sorted(parts)}", Code.DAMAGED)
    return Sample(key, parts[suffix], suffix, json.loads(parts["json"]))


def decode_rgb(image: bytes) -> NDArray[np.uint8]:
    """Stored bytes -> uint8 (height, width, 3). Stored images are RGB already."""
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"))


class ShardReader:
    """Random access to a dataset's stored samples by key. Tars are indexed when first touched. `parts` narrows it to some."""

    def __init__(self, dataset: Artifact, parts: Sequence[str] | None = None) -> None:
        self.folder = dataset.require("make dataset").folder
        self._part_of: dict[str, str] = {}
        for name in parts if parts is not None else [receipt.name for receipt in dataset.receipts()]:
            ledger = pq.read_table(self.folder / "ledger" / f"{name}.parquet", columns=["key", "reason"])
            stored = ledger.filter(pc.is_null(ledger["reason"]))["key"].to_pylist()
            self._part_of.update(dict.fromkeys(stored, name))
        self._index: dict[str, dict[str, tuple[int, int]]] = {}

    def keys(self) -> list[str]:
        """Keys of all stored samples, ascending."""
        return sorted(self._part_of)

    def __contains__(self, key: str) -> bool:
        return key in self._part_of

    def image_bytes(self, key: str) -> bytes:
        """The stored bytes of the image."""
        return self.sample(key).image

    def sample(self, key: str) -> Sample:
        """Everything stored under the key."""
        members = self._members(key)
        suffix = next(s for s in IMAGE_SUFFIXES if f"{key}.{s}" in members)
        return Sample(key, self._read(key, f"{key}.{suffix}"), suffix, self.meta(key))

    def image(self, key: str) -> NDArray[np.uint8]:
        """uint8 (height, width, 3)."""
        return decode_rgb(self.image_bytes(key))

    def meta(self, key: str) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads(self._read(key, f"{key}.json"))
        return meta

    def tar_path(self, key: str) -> Path:
        """Where the shard lies that holds a sample. Raises KeyError for a key that no shard holds."""
        if key not in self._part_of:
            raise KeyError(f"no stored sample has the key {key!r} in {self.folder}")
        return self.folder / "shards" / f"{self._part_of[key]}.tar"

    def _members(self, key: str) -> dict[str, tuple[int, int]]:
        path = self.tar_path(key)
        if path.stem not in self._index:
            with tarfile.open(path, "r:") as tar:
                self._index[path.stem] = {m.name: (m.offset_data, m.size) for m in tar}
        return self._index[path.stem]

    def _read(self, key: str, member: str) -> bytes:
        offset, size = self._members(key)[member]
        with self.tar_path(key).open("rb") as file:
            file.seek(offset)
            return file.read(size)
