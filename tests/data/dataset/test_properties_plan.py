"""A plan's digest is one of values: of no chunking, offset or writer, and of every single value. Splits are shares by hash."""

import io
import json
import math
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.dataset.plan import PLAN_SCHEMA, plan_digest, plan_tables
from data.dataset.splits import draw_split
from data.sources.candidates import Candidate
from data.sources.settings import SplitSettings

MANY = settings(deadline=None, max_examples=80, derandomize=True, database=None)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): TEXT,
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.float64(): st.floats(allow_nan=False).map(lambda value: value + 0.0),  # -0.0 equals 0.0 here, not in bytes
    pa.list_(pa.string()): st.lists(st.none() | TEXT, max_size=3),
}
ROWS = st.lists(
    st.fixed_dictionaries({field.name: st.none() | VALUES[field.type] for field in PLAN_SCHEMA}), max_size=5
)
CANDIDATES = st.lists(
    st.builds(
        Candidate, source_id=TEXT, url=TEXT, captions=st.lists(TEXT, max_size=3).map(tuple), license=st.none() | TEXT,
        watermark=st.none() | st.floats(0, 1), identity=st.none() | TEXT, extra=st.none() | st.dictionaries(TEXT, TEXT, max_size=2),
    ),
    max_size=8,
)  # fmt: skip
SHARES = st.tuples(st.floats(0, 0.5), st.floats(0, 0.49)).map(
    lambda shares: SplitSettings(val=shares[0], test=shares[1])
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)


@MANY
@given(ROWS, ROWS, st.data())
def test_a_digest_does_not_depend_on_how_rows_are_held(
    rows: list[dict[str, Any]], others: list[dict[str, Any]], data: Any
) -> None:
    whole, cut = table(rows), data.draw(st.integers(0, len(rows)))
    expected = plan_digest(whole)
    assert plan_digest(pa.concat_tables([whole[:cut], whole[cut:]])) == expected
    assert plan_digest(pa.concat_tables([table([row]) for row in rows] or [whole])) == expected
    among = pa.concat_tables([table(others), whole, table(others)]).combine_chunks()
    assert plan_digest(among.slice(len(others), len(rows))) == expected, "an offset into a longer table"
    buffer = io.BytesIO()
    pq.write_table(whole, buffer, compression="zstd")
    assert plan_digest(pq.read_table(buffer)) == expected


@MANY
@given(ROWS.filter(bool), st.data())
def test_a_digest_changes_with_any_value(rows: list[dict[str, Any]], data: Any) -> None:
    at, field = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.sampled_from(list(PLAN_SCHEMA)))
    value = data.draw(st.none() | VALUES[field.type])
    assume(value != rows[at][field.name])
    changed = [row | {field.name: value} if i == at else row for i, row in enumerate(rows)]
    assert plan_digest(table(changed)) != plan_digest(table(rows))


@MANY
@given(ROWS, ROWS)
def test_two_tables_have_one_digest_only_where_they_are_equal(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert (plan_digest(table(a)) == plan_digest(table(b))) == (a == b)


@pytest.mark.parametrize("column", ["captions", "url"])
@MANY
@given(st.lists(TEXT, min_size=2, max_size=5), st.data())
def test_where_one_text_ends_and_the_next_begins_counts(column: str, texts: list[str], data: Any) -> None:
    """The same characters in the same order, cut elsewhere."""
    joined = "".join(texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joined)), min_size=len(texts) - 1, max_size=len(texts) - 1)))
    other = [joined[a:b] for a, b in zip([0, *cuts], [*cuts, len(joined)], strict=True)]
    assume(other != texts)
    blank: dict[str, Any] = dict.fromkeys(PLAN_SCHEMA.names)
    rows_of = {
        "url": lambda values: [blank | {"url": value} for value in values],
        "captions": lambda values: [blank | {"captions": values}],
    }
    assert plan_digest(table(rows_of[column](texts))) != plan_digest(table(rows_of[column](other)))


@MANY
@given(CANDIDATES, st.integers(1, 4), SHARES, st.integers(0, 9))
def test_a_plan_holds_every_candidate_in_order(
    candidates: list[Candidate], per_shard: int, split: SplitSettings, seed: int
) -> None:
    shards = list(plan_tables(iter(candidates), per_shard, split, seed))
    assert [len(shard) for shard in shards] == [
        len(candidates[i : i + per_shard]) for i in range(0, len(candidates), per_shard)
    ]
    rows = [row for shard in shards for row in shard.to_pylist()]
    assert [row["key"] for row in rows] == [f"{i:09d}" for i in range(len(candidates))]
    for i, (row, candidate) in enumerate(zip(rows, candidates, strict=True)):
        assert (row["source_id"], row["url"], tuple(row["captions"])) == (
            candidate.source_id,
            candidate.url,
            candidate.captions,
        )
        assert row["shard"] == i // per_shard
        assert row["split"] == draw_split(candidate.identity or candidate.source_id, split, seed)
        assert (json.loads(row["extra"]) if row["extra"] else None) == (candidate.extra or None)
    again = plan_tables(iter(candidates), per_shard, split, seed)
    assert [plan_digest(shard) for shard in shards] == [plan_digest(shard) for shard in again]


@MANY
@given(TEXT, SHARES, SHARES, st.integers(0, 2**32))
def test_one_image_has_one_split_and_larger_shares_never_give_an_image_back(
    identity: str, shares: SplitSettings, other: SplitSettings, seed: int
) -> None:
    split = draw_split(identity, shares, seed)
    assert split == draw_split(identity, shares, seed)
    if other.test >= shares.test and split == "test":
        assert draw_split(identity, other, seed) == "test"
    if other.test <= shares.test and other.test + other.val <= shares.test + shares.val and split == "train":
        assert draw_split(identity, other, seed) == "train"


@settings(deadline=None, max_examples=10, derandomize=True, database=None)
@given(SHARES, st.integers(0, 10**6))
def test_splits_have_the_shares_that_were_asked_for(shares: SplitSettings, seed: int) -> None:
    n = 3000
    counts = Counter(draw_split(f"image {i}", shares, seed) for i in range(n))
    for name, share in (("val", shares.val), ("test", shares.test), ("train", 1 - shares.val - shares.test)):
        assert abs(counts[name] - n * share) <= 5 * math.sqrt(n * share * (1 - share)) + 1
