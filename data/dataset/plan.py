"""The plan: the frozen list of candidates, their keys, shards and splits. Nothing later changes a key.

    plan.parquet            row group n holds the rows of shard n, so that a worker reads its own and nothing else
    source.json             last: what the plan was made from, the digest of every shard, totals; its presence means frozen
    retries/NNNNN.parquet   the rows of appended shards (retry-failed); never part of the frozen list itself

A plan is written as it is read from the source, a shard at a time: memory does not grow with the number of candidates, but for
16 bytes each that prove identities and keys unique.
"""

import hashlib
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.splits import draw_split
from data.pipeline.artifacts import fsync_path, publish_json, raise_if_full, read_json
from data.pipeline.errors import Code, UserError
from data.pipeline.faults import boundary
from data.pipeline.progress import PLAIN_INTERVAL_S
from data.sources.candidates import Candidate
from data.sources.facts import describe_change
from data.sources.settings import SplitSettings

if TYPE_CHECKING:
    from data.dataset.settings import DatasetSettings
    from data.sources.source import Source

PLAN_FILE, SOURCE_FILE, RETRIES = "plan.parquet", "source.json", "retries"
PLAN_VERSION = 2  # raised when equal sources and settings give another plan
PLAN_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("source_id", pa.string()),
        ("url", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("attributes", pa.string()),  # JSON, or null
        ("split", pa.string()),
        ("license", pa.string()),
        ("source_page", pa.string()),
        ("attribution", pa.string()),
        ("expected_hash", pa.string()),
        ("nsfw", pa.string()),
        ("watermark", pa.float64()),
        ("extra", pa.string()),  # JSON, or null
        ("excluded", pa.string()),  # a data.fetch.reasons.Reason, or null
    ]
)


@dataclass(frozen=True)
class FrozenPlan:
    """A plan that stands: per shard the digest and number of its rows, totals, and what the source could not use (`notes`)."""

    folder: Path
    made_from: Mapping[str, Any]
    shards: tuple[str, ...]
    rows: tuple[int, ...]
    totals: Mapping[str, int]
    notes: Mapping[str, int]


def freeze_plan(folder: Path, source: "Source", settings: "DatasetSettings", seed: int) -> FrozenPlan:
    """The plan of `source`: the frozen one where nothing changed since, otherwise made now.

    Raises UserError when the source has no candidates or repeats one, and when it differs from the one that finished parts were
    made from: keys of existing shards would change meaning.
    """
    made_from = json.loads(json.dumps(_made_from(source, settings, seed)))
    frozen = _frozen_plan(folder, made_from)
    if frozen is not None:
        return frozen
    _write_plan(folder, source, settings, seed, made_from)
    for note, count in sorted(source.notes.items()):
        print(f"note: {count} x {note}", file=sys.stderr)
    frozen = read_frozen(folder)
    assert frozen is not None
    return frozen


def _frozen_plan(folder: Path, made_from: Mapping[str, Any]) -> FrozenPlan | None:
    """The plan that stands, where it was made from the same; None where none stands that parts were made from."""
    frozen = read_frozen(folder)
    if frozen is not None and frozen.made_from == made_from and (folder / PLAN_FILE).is_file():
        return frozen
    if any((folder / "parts").glob("*.json")):
        raise UserError(
            f"{folder / PLAN_FILE} is frozen and {_changed(frozen, made_from)}; "
            f"use another run.name, or delete {folder} to start over",
            Code.INPUT_CHANGED,
        )
    return None


def _write_plan(
    folder: Path, source: "Source", settings: "DatasetSettings", seed: int, made_from: Mapping[str, Any]
) -> None:
    """Stream the source into plan.parquet, then publish source.json."""
    temporary = folder / "attempts" / f"plan.{uuid.uuid4().hex}.parquet"
    try:
        with PlanWriter(temporary) as writer:
            said = time.monotonic()
            for table in plan_tables(source.candidates(), settings.samples_per_shard, settings.split, seed):
                writer.write(table)
                if time.monotonic() - said > PLAIN_INTERVAL_S:
                    said = time.monotonic()
                    print(f"plan: {writer.totals['samples']:,} images so far", flush=True)
        refuse_repeats(temporary)
        fsync_path(temporary)
        temporary.replace(folder / PLAN_FILE)
        fsync_path(folder)
        boundary("source")
        frozen = {"made_from": made_from, **writer.summary(), "notes": dict(sorted(source.notes.items()))}
        publish_json(folder / SOURCE_FILE, frozen)
    except OSError as error:
        raise_if_full(error, folder / PLAN_FILE)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_frozen(folder: Path) -> FrozenPlan | None:
    """The frozen plan in a dataset's folder, or None where none stands."""
    path = folder / SOURCE_FILE
    if not path.exists():
        return None
    found = read_json(path, "the plan's source.json")
    try:
        digests, rows = ([shard[name] for shard in found["shards"]] for name in ("digest", "rows"))
        return FrozenPlan(folder, found["made_from"], tuple(digests), tuple(rows), found["totals"], found["notes"])
    except (KeyError, TypeError):
        raise UserError(
            f"the plan's source.json is damaged: {path}; delete {folder} to start over", Code.DAMAGED
        ) from None


def read_plan(folder: Path, shard: int | None = None, columns: list[str] | None = None) -> pa.Table:
    """The rows of one shard (a number past the plan's last is a retry shard), or the whole plan without retries.

    Raises UserError for a shard that was never planned and for a damaged file.
    """
    path = folder / PLAN_FILE
    try:
        with pq.ParquetFile(path) as file:
            if shard is None:
                return file.read(columns)
            if shard < file.num_row_groups:
                return file.read_row_group(shard, columns)
        path = retry_path(folder, shard)
        return pq.read_table(path, columns=columns)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run `make dataset` first", Code.MISSING) from None
    except pa.ArrowException as error:
        raise UserError(
            f"{path} is damaged: {str(error).splitlines()[0]}; restore it from a copy", Code.DAMAGED
        ) from None


def retry_path(folder: Path, shard: int) -> Path:
    """Where the rows of a retry shard lie."""
    return folder / RETRIES / f"{shard:05d}.parquet"


def plan_digest(table: pa.Table) -> str:
    """sha256 (hex) of a shard's rows: of their values, whatever wrote them and however they are chunked."""
    digest = hashlib.sha256()
    for field in PLAN_SCHEMA:
        digest.update(field.name.encode())
        _digest_values(digest, table[field.name].combine_chunks())
    return digest.hexdigest()


def _digest_values(digest: Any, values: pa.Array) -> None:
    """Which values are null, then how long each is (text, lists), then what they hold one after the other, little-endian."""
    digest.update(len(values).to_bytes(8, "little"))
    digest.update(values.is_valid().to_numpy(zero_copy_only=False).tobytes())
    values = values.drop_null()
    if pa.types.is_list(values.type):
        digest.update(values.value_lengths().to_numpy().astype("<i8").tobytes())
        _digest_values(digest, values.flatten())
    elif pa.types.is_string(values.type):
        digest.update(pc.binary_length(values).to_numpy().astype("<i8").tobytes())
        if len(values):
            offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
            digest.update(memoryview(values.buffers()[2] or b"")[offsets[0] : offsets[-1]])
    else:
        digest.update(values.to_numpy().astype("<f8" if pa.types.is_floating(values.type) else "<i8").tobytes())


class PlanWriter:
    """Writes rows of PLAN_SCHEMA to a new Parquet file, one row group a shard; equal rows give equal bytes.

    The file is complete when the context ends without an exception. Moving it into place is the caller's.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.digests: list[str] = []
        self.rows: list[int] = []
        self.totals: Counter[str] = Counter(samples=0, pairs=0, excluded_samples=0)

    def __enter__(self) -> "PlanWriter":
        # A file of Python's own, because its errors say by number that the disk is full.
        self._file = self.path.open("wb")
        self._writer = pq.ParquetWriter(self._file, PLAN_SCHEMA, compression="zstd", write_statistics=["key"])
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # Closed in any case, because a writer that is merely dropped would try to later; after a failure it may fail as well.
            with nullcontext() if kind is None else suppress(OSError, pa.ArrowException):
                self._writer.close()
        finally:
            self._file.close()

    def write(self, table: pa.Table) -> str:
        """Append a shard; returns the digest of its rows."""
        self._writer.write_table(table, row_group_size=len(table))
        self.digests.append(plan_digest(table))
        self.rows.append(len(table))
        lengths = table["captions"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
        excluded = len(table) - table["excluded"].null_count
        self.totals.update(samples=len(table), pairs=int(lengths.sum()), excluded_samples=excluded)
        return self.digests[-1]

    def summary(self) -> dict[str, Any]:
        """JSON about what was written: per shard its digest and rows, and the totals."""
        shards = [{"digest": d, "rows": n} for d, n in zip(self.digests, self.rows, strict=True)]
        return {"shards": shards, "totals": dict(sorted(self.totals.items()))}


def refuse_repeats(path: Path) -> None:
    """Raise UserError when two rows of a plan have the same source_id or key, or when it has no rows."""
    with pq.ParquetFile(path) as file:
        if not file.metadata.num_rows:
            raise UserError("the source has no candidates: no images and no captions were found")
        for name, what in (("source_id", "names the image"), ("key", "gives the key")):
            digests = bytearray()
            for shard in range(file.num_row_groups):
                for value in file.read_row_group(shard, [name])[name].to_pylist():
                    digests += hashlib.blake2b(value.encode(), digest_size=16).digest()
            row = repeated_row(digests)
            if row is not None:
                value = file.read([name])[name][row].as_py()
                raise UserError(
                    f"the source {what} {value!r} twice; each image is one candidate with all its captions, each key one image"
                )


def repeated_row(digests: bytes | bytearray) -> int | None:
    """The index of a 16-byte digest that stands earlier already, or None when all are different."""
    pairs = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    same = np.flatnonzero((pairs[order[1:]] == pairs[order[:-1]]).all(axis=1))
    return int(order[1:][same].min()) if len(same) else None


def plan_tables(
    candidates: Iterable[Candidate], samples_per_shard: int, split: SplitSettings, seed: int
) -> Iterator[pa.Table]:
    """Candidates in their source's order -> the rows of one shard after the other. Raises UserError for half-keyed sources."""
    waiting = iter(candidates)
    keyed: bool | None = None
    for shard in range(sys.maxsize):
        group = list(islice(waiting, samples_per_shard))
        if not group:
            return
        keyed = group[0].key is not None if keyed is None else keyed
        odd = next((c for c in group if (c.key is not None) != keyed), None)
        if odd is not None:
            raise UserError(
                f"the source gives keys to some images and none to others, such as {odd.source_id!r}; keep them in two runs"
            )
        yield _shard_table(group, shard, shard * samples_per_shard, split, seed)


def _shard_table(group: list[Candidate], shard: int, first: int, split: SplitSettings, seed: int) -> pa.Table:
    columns: dict[str, Any] = {
        name: [getattr(c, name) for c in group]
        for name in (
            "source_id", "url", "captions", "license", "source_page", "attribution", "expected_hash", "nsfw", "watermark", "excluded",
        )
    }  # fmt: skip
    columns["key"] = [c.key or f"{first + i:09d}" for i, c in enumerate(group)]
    columns["shard"] = [shard] * len(group)
    columns["split"] = [c.split or draw_split(c.identity or c.source_id, split, seed) for c in group]
    columns["attributes"] = [_json(c.attributes) for c in group]
    columns["extra"] = [_json(c.extra) for c in group]
    return pa.table([pa.array(columns[field.name], field.type) for field in PLAN_SCHEMA], schema=PLAN_SCHEMA)


_encode = json.JSONEncoder(sort_keys=True, allow_nan=False, check_circular=False).encode


def _json(value: Mapping[str, Any] | None) -> str | None:
    return _encode(value) if value else None


def _made_from(source: "Source", settings: "DatasetSettings", seed: int) -> dict[str, Any]:
    return {
        "plan_version": PLAN_VERSION, "seed": seed, "samples_per_shard": settings.samples_per_shard,
        "split": settings.split.model_dump(mode="json"), "source": source.facts(),
    }  # fmt: skip


def _changed(frozen: FrozenPlan | None, made_from: Mapping[str, Any]) -> str:
    """What differs between then and now, in words."""
    if frozen is None:
        return "was made by an earlier version of the toolkit, without source.json"
    return f"the source has changed since: {describe_change(frozen.made_from, made_from)}"
