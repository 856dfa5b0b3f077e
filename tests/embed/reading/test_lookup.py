"""Keys are found in the row groups whose range holds them, and no other is read."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.fake_cache import write_cache
from data.pipeline.artifacts import Artifact
from embed.reading.lookup import Pairs, Span, find_rows
from embed.reading.parts import CacheParts


def spans_of(stored: list[Pairs], ranges_known: bool) -> list[Span]:
    first = np.concatenate([[0], np.cumsum([len(keys) for keys, _ in stored])]).tolist()
    return [
        Span(at, keys[0] if ranges_known else b"", keys[-1] if ranges_known else b"\xff")
        for at, (keys, _) in zip(first, stored, strict=False)
    ]


@pytest.mark.parametrize("ranges_known", [True, False])
def test_every_pair_is_found_and_nothing_else(ranges_known: bool) -> None:
    """Against a dictionary, on spans that overlap and that cut an image's captions, with captions left out."""
    rng = np.random.default_rng(0)
    pairs = [(f"{i:04d}".encode(), k) for i in range(0, 300, 2) for k in range(5) if rng.random() < 0.6]
    early = [pair for pair in pairs if int(pair[0]) % 7]
    late = [pair for pair in pairs if int(pair[0]) % 7 == 0]  # as a retry's part lies between the others
    cuts = [early[i : i + 13] for i in range(0, len(early), 13)] + [late[i : i + 13] for i in range(0, len(late), 13)]
    stored = [(np.array([k for k, _ in cut]), np.array([n for _, n in cut], np.int32)) for cut in cuts]
    rows = {pair: row for row, pair in enumerate(pair for cut in cuts for pair in cut)}
    first = {}
    for (key, _), row in rows.items():
        first.setdefault(key, row)
    asked = [(f"{i:04d}".encode(), k) for i in range(-1, 302) for k in range(6)]
    asked = [asked[i] for i in rng.permutation(len(asked))]
    keys, numbers = np.array([k for k, _ in asked]), np.array([n for _, n in asked], np.int32)
    spans = spans_of(stored, ranges_known)
    assert find_rows(spans, stored.__getitem__, keys, numbers).tolist() == [rows.get(pair, -1) for pair in asked]
    assert find_rows(spans, stored.__getitem__, keys, None).tolist() == [first.get(key, -1) for key, _ in asked]
    assert len(find_rows(spans, stored.__getitem__, keys[:0], None)) == 0


def test_only_what_can_hold_a_key_is_read() -> None:
    stored = [(np.array([f"{i:04d}".encode()] * 3), np.arange(3, dtype=np.int32)) for i in range(50)]
    read: list[int] = []

    def noted(i: int) -> Pairs:
        read.append(i)
        return stored[i]

    found = find_rows(
        spans_of(stored, True), noted, np.array([b"0040", b"0007", b"0007"]), np.array([2, 0, 9], np.int32)
    )
    assert found.tolist() == [122, 21, -1] and read == [7, 40]


def test_a_footer_tells_the_range_of_keys_or_that_it_is_unknown(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "e", [range(10), range(10, 30)], 8, 1, 7, 12)
    parts = CacheParts(cache, None, None, None)
    assert [(g.rows, g.lowest, g.highest) for g in parts.parts[1].groups] == [
        (7, b"000000010", b"000000016"), (7, b"000000017", b"000000023"), (6, b"000000024", b"000000029"),
    ]  # fmt: skip
    path = cache.folder / "00001.parquet"
    size = path.stat().st_size
    pq.write_table(pq.read_table(path), path, row_group_size=7, write_statistics=False, compression="none")
    manifest = (cache.folder / "manifest.json").read_text().replace(f'"bytes":{size}', f'"bytes":{path.stat().st_size}')
    (cache.folder / "manifest.json").write_text(manifest)
    groups = CacheParts(Artifact(cache.folder), None, None, None).parts[1].groups
    assert [(g.lowest, g.highest) for g in groups] == [(b"", b"\xff")] * 3
