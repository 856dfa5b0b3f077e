"""Which rows of a cache are read: its parts, what view and split leave of each row group, and everything that is refused."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data.pipeline.artifacts import Artifact, Receipt
from data.pipeline.errors import Code, UserError
from embed.format import FORMAT, NULL_PART, read_metadata
from embed.reading.mapped import OpenPart, fixed_width
from embed.reading.rows import VECTORS, Buffer, Kind, Rows, Vectors

OPENERS = 8  # threads that read footers


class Unit(NamedTuple):
    """A row group: rows [start, start + rows) of part number `part`, of which `kept` are read."""

    part: int
    group: int
    start: int
    rows: int
    kept: int


class Group(NamedTuple):
    """What a footer tells of a row group: its rows, its smallest and its largest key."""

    rows: int
    lowest: bytes
    highest: bytes


@dataclass(frozen=True)
class Part:
    """`keep` marks the rows that are read, eight to a byte; None means all of them."""

    name: str
    path: Path
    groups: tuple[Group, ...]
    keep: NDArray[np.uint8] | None

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    def kept(self, start: int, rows: int) -> NDArray[np.bool_] | None:
        """Which of the rows [start, start + rows) are read; None for all of them."""
        if self.keep is None:
            return None
        first = start // 8
        bits = np.unpackbits(self.keep[first : (start + rows + 7) // 8])
        return bits[start - 8 * first : start - 8 * first + rows].view(np.bool_)


class CacheParts:
    """The parts of a cache as a view and a split leave them, in the manifest's order; rows of a part by (key, caption_index).

    Opening reads footers and decisions, no vectors. Raises UserError for another CLIP's cache, a part that is missing or of
    another size than recorded, a view of other pairs, a split that no pair has.
    """

    def __init__(self, embeddings: Artifact, view: Artifact | None, split: str | None, identity: str | None) -> None:
        self.folder = embeddings.require("make embeddings").folder
        self.view, self.split = view.require("make dataset") if view is not None else None, split
        receipts = embeddings.receipts()
        for receipt in receipts:
            self._require_file(receipt)
        self.metadata = read_metadata(str(self.folder / f"{NULL_PART}.parquet"))
        self.identity = self.metadata["clip_identity"]
        if identity is not None and identity != self.identity:
            raise UserError(
                f"{self.folder} was made with the CLIP {self.metadata['clip_name']} ({self.identity[:12]}), "
                f"not with the one in use ({identity[:12]}); "
                f"delete {self.folder} and run `make embeddings`, or use the CLIP it was made with",
                Code.FOREIGN,
            )
        self.dim = int(self.metadata["dim"])
        tokens = pq.read_schema(self.folder / f"{NULL_PART}.parquet").field("token_ids")
        self.token_dtype = np.dtype(tokens.metadata[b"dtype"].decode()).newbyteorder("<")
        self.context_length = tokens.type.byte_width // self.token_dtype.itemsize
        with ThreadPoolExecutor(OPENERS) as pool:
            names = [receipt.name for receipt in receipts if receipt.name != NULL_PART]
            self.parts: list[Part] = list(pool.map(self._open, names))
        self.units = [unit for number, part in enumerate(self.parts) for unit in _units(number, part)]
        self.counts = np.array([unit.kept for unit in self.units], dtype=np.int64)
        if split is not None and not self.units and split not in self._pairs_of_splits():
            raise self.no_pair_of_split()
        self.row_bytes = 4 * self.dim + self.token_dtype.itemsize * self.context_length + 64
        self._checked: set[int] = set()

    def _require_file(self, receipt: Receipt) -> None:
        for relative, facts in receipt.files.items():
            path = self.folder / relative
            if not path.is_file():
                raise UserError(
                    f"{path} is missing although the manifest lists it; run `python -m embed verify`, then `make embeddings`",
                    Code.DAMAGED,
                )
            if path.stat().st_size != facts["bytes"]:
                raise UserError(
                    f"{path} has {path.stat().st_size} bytes, the manifest records {facts['bytes']}: it was cut or replaced; "
                    f"delete it and run `make embeddings`",
                    Code.DAMAGED,
                )

    def _open(self, name: str) -> Part:
        path = self.folder / f"{name}.parquet"
        try:
            footer = pq.read_metadata(path, memory_map=True)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{path} cannot be read as Parquet ({error}); delete it and run `make embeddings`", Code.DAMAGED
            ) from None
        facts = {
            k.decode(): v.decode(errors="replace") for k, v in (footer.metadata or {}).items() if k != b"ARROW:schema"
        }
        if facts.get("format") != FORMAT:
            raise UserError(
                f"{path} is not an embedding cache of format {FORMAT}; it says {facts.get('format')!r}",
                Code.OTHER_VERSION,
            )
        if facts.get("clip_identity") != self.identity:
            raise UserError(
                f"{path} was made with another CLIP than the rest of {self.folder}; delete it and run `make embeddings`",
                Code.FOREIGN,
            )
        groups = tuple(_group(footer.row_group(i)) for i in range(footer.num_row_groups))
        keep = self._keep(name, path, footer.num_rows)
        return Part(name, path, groups, None if keep is None else np.packbits(keep))

    def _keep(self, name: str, path: Path, rows: int) -> NDArray[np.bool_] | None:
        keep = None
        if self.view is not None:
            keep = self._decisions(name, path, rows)
        if self.split is not None:
            ours = pc.equal(_read(path, ["split"])["split"], self.split).to_numpy()
            keep = ours if keep is None else keep & ours
        return keep

    def kept_by_view(self) -> bool:
        """Whether the view alone keeps any row."""
        if self.view is None:
            return any(part.rows for part in self.parts)
        return any(self._decisions(part.name, part.path, part.rows).any() for part in self.parts)

    def no_pair_of_split(self) -> UserError:
        """Says which splits there are, and how the one asked for comes by pairs if it is one that a dataset can have."""
        there_are = ", ".join(f"{name} ({n:,} pairs)" for name, n in self._pairs_of_splits().items()) or "none"
        advice = {
            "train": "; lower [dataset.split] val and test, or loosen the view",
            "val": "; a larger [dataset.split] val or a larger dataset gives some",
            "test": "; a larger [dataset.split] test or a larger dataset gives some",
        }
        return UserError(
            f"no pair of the split {self.split!r} is left in {self.folder}, whose splits are {there_are}"
            + advice.get(str(self.split), ""),
            Code.EMPTY,
        )

    def _pairs_of_splits(self) -> dict[str, int]:
        """How many pairs of the whole cache each split has, by name."""
        found: Counter[str] = Counter()
        for part in self.parts:
            for counted in pc.value_counts(_read(part.path, ["split"])["split"]).to_pylist():
                found[counted["values"]] += counted["counts"]
        return dict(sorted(found.items()))

    def _decisions(self, name: str, path: Path, rows: int) -> NDArray[np.bool_]:
        """The view's `keep` for each row of a part. The keys of both are compared when the part is first read."""
        decisions = _read(self._view_part(name), ["keep"])["keep"]
        if len(decisions) == rows:
            return np.asarray(decisions.to_numpy(), dtype=np.bool_)
        both = ["key", "caption_index"]
        ours = _read(path, both).to_pandas()
        theirs = _read(self._view_part(name), [*both, "keep"]).to_pandas()
        found = pd.MultiIndex.from_frame(theirs[both]).get_indexer(pd.MultiIndex.from_frame(ours[both]))
        if (found < 0).any():
            first = ours[both].iloc[int((found < 0).argmax())]
            raise self._foreign_view(name, str(first["key"]), int(first["caption_index"]))
        return np.asarray(theirs["keep"].to_numpy()[found], dtype=np.bool_)

    def _view_part(self, name: str) -> Path:
        assert self.view is not None
        path = self.view.folder / f"{name}.parquet"
        if not path.is_file():
            raise UserError(
                f"view {self.view.folder} has no part {name}; make the view again (`make dataset`, `make embeddings`)",
                Code.STALE,
            )
        return path

    def _foreign_view(self, name: str, key: str, caption_index: int) -> UserError:
        return UserError(
            f"pair {(key, caption_index)} of part {name} is not in the view {self.view.folder if self.view else ''}: "
            "they were made from different datasets; make the view again",
            Code.FOREIGN,
        )

    def check_pairs(self, number: int) -> None:
        """Compare the keys of a part with those of the view's part, once. Raises UserError where they differ."""
        if self.view is None or number in self._checked:
            return
        part = self.parts[number]
        pairs = ["key", "caption_index"]
        ours = _read(part.path, pairs)
        theirs = _read(self._view_part(part.name), pairs)
        if len(theirs) == len(ours):  # where it is not, the rows were found by their keys
            same = pc.and_(*(pc.equal(ours[name], theirs[name]) for name in pairs))
            if not pc.all(same, min_count=0).as_py():
                row = int(np.argmin(same.to_numpy()))
                raise self._foreign_view(part.name, ours["key"][row].as_py(), ours["caption_index"][row].as_py())
        self._checked.add(number)

    def walk(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, OpenPart, NDArray[np.bool_] | None]]:
        """Each unit with its open part and the rows that are read of it; a part is opened once for neighbouring units."""
        opened: OpenPart | None = None
        for unit in units:
            part = self.parts[unit.part]
            if opened is None or opened.path != part.path:
                self.check_pairs(unit.part)
                opened = OpenPart(part.path)
            keep = part.kept(unit.start, unit.rows)
            yield unit, opened, None if keep is None or keep.all() else keep

    def keys(self, units: Sequence[Unit]) -> tuple[NDArray[np.bytes_], NDArray[np.int32]]:
        """Keys and caption numbers of the rows of `units`."""
        keys, numbers = [np.zeros(0, "S1")], [np.zeros(0, np.int32)]
        for unit, part, keep in self.walk(units):
            table = part.columns(unit.group, ["key", "caption_index"])
            keys.append(_kept(fixed_width(table["key"]), keep))
            numbers.append(_kept(table["caption_index"].to_numpy(), keep))
        return np.concatenate(keys), np.concatenate(numbers)

    def load(
        self, units: Sequence[Unit], kinds: Sequence[Kind], by_pair: bool = False, buffer: Buffer | None = None
    ) -> Rows:
        """Copy the rows of `units` into memory, with the vectors named ("image", "text"): in that order, or by (key, caption_index).

        What was loaded into the same `buffer` before is overwritten. Raises UserError naming a vector that is not of unit length."""
        buffer = buffer or Buffer()
        keys, numbers = self.keys(units)
        order = _order(keys, numbers) if by_pair else None
        total = len(keys)
        stored = {
            VECTORS[kind]: buffer.take(kind, total, self.dim if kind in kinds else 0, np.dtype("<f2"))
            for kind in VECTORS
        }
        tokens = buffer.take("tokens", total, self.context_length, self.token_dtype)
        lengths = np.empty(total, np.int64)
        place, at = None if order is None else np.argsort(order), 0
        for unit, part, keep in self.walk(units):
            here = slice(at, at + unit.kept) if place is None else place[at : at + unit.kept]
            for name, target in (*stored.items(), ("token_ids", tokens)):
                if target.shape[1]:
                    part.copy_into(target, here, unit.group, name, keep)
            lengths[here] = _kept(part.columns(unit.group, ["n_tokens"])["n_tokens"].to_numpy(), keep)
            at += unit.kept
        if order is not None:
            keys, numbers = keys[order], numbers[order]
        image, text = (
            Vectors.measure(torch.from_numpy(vectors), f"{self.folder}: {name}", keys)
            for name, vectors in stored.items()
        )
        return Rows(keys, numbers, image, text, tokens, torch.from_numpy(lengths))


def _order(keys: NDArray[np.bytes_], numbers: NDArray[np.int32]) -> NDArray[np.int64] | None:
    """Rows by (key, caption_index); None where they are so already."""
    same = keys[1:] == keys[:-1]
    if bool(((keys[1:] > keys[:-1]) | (same & (numbers[1:] > numbers[:-1]))).all()):
        return None
    return np.lexsort((numbers, keys))


def _kept(column: NDArray[Any], keep: NDArray[np.bool_] | None) -> NDArray[Any]:
    return column if keep is None else column[keep]


def _group(facts: pq.RowGroupMetaData) -> Group:
    key = facts.column(0)
    assert key.path_in_schema == "key"
    if not key.is_stats_set or not key.statistics.has_min_max:
        return Group(facts.num_rows, b"", b"\xff")
    return Group(facts.num_rows, key.statistics.min.encode(), key.statistics.max.encode())


def _read(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a small file; `pq.read_table` takes several times longer over its dataset layer."""
    return pq.ParquetFile(path, memory_map=True).read(columns=columns, use_threads=False)


def _units(number: int, part: Part) -> Iterator[Unit]:
    """The row groups of a part of which anything is read."""
    start = 0
    for group, (rows, _, _) in enumerate(part.groups):
        keep = part.kept(start, rows)
        kept = rows if keep is None else int(np.count_nonzero(keep))
        if kept:
            yield Unit(number, group, start, rows, kept)
        start += rows
