"""Shards: one tar of samples in webdataset's layout, the same bytes for the same samples.

Members of a sample, in this order: `<key>.<jpg|png|webp>`, `<key>.json` (everything known), `<key>.txt` (caption 0).
Samples are sorted by key; owner, mode and time are constants.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from data.artifacts import Artifact, canonical_json
from data.errors import UserError

IMAGE_SUFFIXES = ("jpg", "png", "webp")


@dataclass(frozen=True)
class Sample:
    """One stored sample: encoded image bytes and the JSON beside it (`captions`, `split`, `url`, sizes, hashes ...)."""

    key: str
    image: bytes
    suffix: str
    meta: dict[str, Any]


class ShardWriter:
    """Writes samples, which must come in ascending order of key, into a tar whose bytes depend on nothing else."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._last = ""

    def write(self, sample: Sample) -> None:
        assert self._last < sample.key, f"samples must be sorted by key: {sample.key} after {self._last}"
        self._last = sample.key
        self._add(f"{sample.key}.{sample.suffix}", sample.image)
        self._add(f"{sample.key}.json", canonical_json(sample.meta))
        self._add(f"{sample.key}.txt", sample.meta["captions"][0].encode())

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        member.mode = 0o644
        self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()


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
        raise UserError(f"{path} is damaged ({error}); run `python -m data verify`, then `make dataset`") from None


def _assemble(path: Path, key: str, parts: dict[str, bytes]) -> Sample:
    suffix = next((s for s in IMAGE_SUFFIXES if s in parts), None)
    if suffix is None or "json" not in parts:
        raise UserError(f"{path}: sample {key} lacks its image or its JSON; it has {sorted(parts)}")
    return Sample(key, parts[suffix], suffix, json.loads(parts["json"]))


def decode_rgb(image: bytes) -> NDArray[np.uint8]:
    """Stored bytes -> uint8 (height, width, 3). Stored images are RGB already."""
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"))


class ShardReader:
    """Random access to a dataset's stored samples by key. Tars are indexed when first touched."""

    def __init__(self, dataset: Artifact) -> None:
        self.folder = dataset.require("make dataset").folder
        self._part_of: dict[str, str] = {}
        for receipt in dataset.receipts():
            ledger = pq.read_table(self.folder / "ledger" / f"{receipt.name}.parquet", columns=["key", "reason"])
            for key, reason in zip(ledger["key"].to_pylist(), ledger["reason"].to_pylist(), strict=True):
                if reason is None:
                    self._part_of[key] = receipt.name
        self._index: dict[str, dict[str, tuple[int, int]]] = {}

    def keys(self) -> list[str]:
        """Keys of all stored samples, ascending."""
        return sorted(self._part_of)

    def __contains__(self, key: str) -> bool:
        return key in self._part_of

    def image_bytes(self, key: str) -> bytes:
        """The stored bytes of the image."""
        members = self._members(key)
        return next(self._read(key, f"{key}.{s}") for s in IMAGE_SUFFIXES if f"{key}.{s}" in members)

    def image(self, key: str) -> NDArray[np.uint8]:
        """uint8 (height, width, 3)."""
        return decode_rgb(self.image_bytes(key))

    def meta(self, key: str) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads(self._read(key, f"{key}.json"))
        return meta

    def _tar_path(self, key: str) -> Path:
        if key not in self._part_of:
            raise KeyError(f"no stored sample has the key {key!r} in {self.folder}")
        return self.folder / "shards" / f"{self._part_of[key]}.tar"

    def _members(self, key: str) -> dict[str, tuple[int, int]]:
        path = self._tar_path(key)
        if path.stem not in self._index:
            with tarfile.open(path, "r:") as tar:
                self._index[path.stem] = {m.name: (m.offset_data, m.size) for m in tar}
        return self._index[path.stem]

    def _read(self, key: str, member: str) -> bytes:
        offset, size = self._members(key)[member]
        with self._tar_path(key).open("rb") as file:
            file.seek(offset)
            return file.read(size)
