"""The plan: the frozen list of candidates, their keys, shards and splits. Nothing later changes a key."""

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts import publish_bytes
from data.errors import UserError
from data.sources.candidates import Candidate
from data.sources.settings import SplitSettings

PLAN_FILE = "plan.parquet"
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
    ]
)


def plan_table(candidates: Iterable[Candidate], samples_per_shard: int, split: SplitSettings, seed: int) -> pa.Table:
    """Candidates in their source's order -> the plan. Raises UserError when the source is empty or repeats an id."""
    rows, seen = [], set()
    for index, c in enumerate(candidates):
        if c.source_id in seen:
            raise UserError(
                f"the source names the image {c.source_id!r} twice; each image is one candidate with all its captions"
            )
        seen.add(c.source_id)
        rows.append(
            {
                "key": f"{index:09d}", "shard": index // samples_per_shard, "source_id": c.source_id, "url": c.url,
                "captions": list(c.captions), "split": c.split or draw_split(c.source_id, split, seed),
                "attributes": None if c.attributes is None else json.dumps(c.attributes, sort_keys=True),
                "license": c.license, "source_page": c.source_page, "attribution": c.attribution,
            }
        )  # fmt: skip
    if not rows:
        raise UserError("the source has no candidates: no images and no captions were found")
    return pa.Table.from_pylist(rows, PLAN_SCHEMA)


def draw_split(identity: str, shares: SplitSettings, seed: int) -> str:
    """`test`, `val` or `train` by hashing (seed, image identity): the same image lands in the same split in any dataset."""
    digest = hashlib.sha256(f"{seed}/{identity}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    if u < shares.test:
        return "test"
    return "val" if u < shares.test + shares.val else "train"


def freeze_plan(folder: Path, table: pa.Table) -> None:
    """Write `plan.parquet`. Raises UserError if another plan is frozen there: keys of existing shards would change meaning."""
    path = folder / PLAN_FILE
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    if path.exists():
        if path.read_bytes() == out.getvalue():
            return
        if any((folder / "parts").glob("*.json")):
            old = pq.read_table(path)
            raise UserError(
                f"{path} is frozen and the source has changed since: {len(old)} candidates then, {len(table)} now"
                f"{_first_difference(old, table)}; use another run.name, or delete {folder} to start over"
            )
    publish_bytes(path, out.getvalue())


def read_plan(folder: Path, shard: int | None = None) -> pa.Table:
    table = pq.read_table(folder / PLAN_FILE)
    return table if shard is None else table.filter(pc.equal(table["shard"], shard))


def _first_difference(old: pa.Table, new: pa.Table) -> str:
    for before, now in zip(old.to_pylist(), new.to_pylist(), strict=False):
        for name in before:
            if before[name] != now[name]:
                return f"; first difference: {name} of {before['source_id']!r} was {before[name]!r}, is {now[name]!r}"
    return ""
