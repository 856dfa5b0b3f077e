"""Of copies one is always left: the first that all other rules leave a pair of."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.views.build import build_base_view, build_train_view
from data.views.copies import copies_to_drop
from data.views.removal import removed_path
from data.views.settings import ScoreRule
from tests.conftest import make_config
from tests.data.made_dataset import Stored, encoded, make_dataset, make_scores, photo
from tests.data.views.test_build import key, reasons

GOOD, SHORT = "a good long caption", "x"
SAME, NEAR = encoded(photo(1)), encoded(photo(1), "JPEG", quality=80)


def viewed(folder: Path, rows: list[Stored], views: dict[str, Any] | None = None, **base: Any) -> Run:
    """Two rows a part, so that groups cross parts."""
    run = Run.open(make_config(folder, views={"base": {"min_caption_words": 2} | base, **(views or {})}))
    make_dataset(run, [rows[i : i + 2] for i in range(0, len(rows), 2)])
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())
    return run


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([Stored(key(n), SAME, (caption,)) for n, caption in enumerate((SHORT, GOOD, GOOD))], "duplicate_image"),
        ([Stored(key(n), encoded(photo(n)), (c,), url="http://h/x") for n, c in enumerate((SHORT, GOOD, GOOD))], "duplicate_url"),
        ([Stored(key(n), i, (c,)) for n, (i, c) in enumerate(((SAME, SHORT), (NEAR, GOOD), (encoded(photo(1), "JPEG", quality=50), GOOD)))],
         "near_duplicate_image"),
    ],
)  # fmt: skip
def test_a_copy_of_what_another_rule_drops_is_kept(tmp_path: Path, rows: list[Stored], why: str) -> None:
    run = viewed(tmp_path, rows, near_duplicates=True)
    assert reasons(run) == {(0, 0): "caption_too_short", (2, 0): why}


def test_one_caption_that_is_left_is_enough(tmp_path: Path) -> None:
    run = viewed(tmp_path, [Stored(key(0), SAME, (SHORT, GOOD)), Stored(key(1), SAME, (SHORT, GOOD))])
    assert reasons(run) == {(0, 0): "caption_too_short", (1, 0): "caption_too_short", (1, 1): "duplicate_image"}


def test_a_copy_takes_the_place_of_a_removed_one_and_only_their_parts_change(tmp_path: Path) -> None:
    """Copies by URL here: byte copies of what is removed go with it."""
    copies = [Stored(key(n), encoded(photo(n)), (GOOD,), url="http://h/x") for n in range(3)]
    others = [Stored(key(n), encoded(photo(n)), (GOOD,)) for n in (8, 9)]
    run = viewed(tmp_path, [copies[0], others[0], copies[1], others[1], copies[2]])
    assert reasons(run) == {(1, 0): "duplicate_url", (2, 0): "duplicate_url"}
    files = [run.view("base").folder / f"{n:05d}.parquet" for n in range(3)]
    before = [path.stat().st_mtime_ns for path in files]
    pq.write_table(pa.table({"key": [key(0)], "entry": ["a"]}), removed_path(run))
    build_base_view(run, InProcess())
    assert reasons(run) == {(0, 0): "removed", (2, 0): "duplicate_url"}
    assert [path.stat().st_mtime_ns == old for path, old in zip(files, before, strict=True)] == [False, False, True]


def test_a_url_copy_of_a_bytes_copy(tmp_path: Path) -> None:
    """0 and 1 share bytes, 1 and 2 a URL: 1 gives way to 0, and 2 to 1; without 0 and 1, 2 is kept."""

    def rows(*captions: str) -> list[Stored]:
        images, urls = (SAME, SAME, encoded(photo(7))), ("http://h/a", "http://h/b", "http://h/b")
        return [Stored(key(n), i, (c,), url=u) for n, (i, c, u) in enumerate(zip(images, captions, urls, strict=True))]

    run = viewed(tmp_path / "a", rows(GOOD, GOOD, GOOD))
    assert reasons(run) == {(1, 0): "duplicate_image", (2, 0): "duplicate_url"}
    run = viewed(tmp_path / "b", rows(SHORT, SHORT, GOOD))
    assert reasons(run) == {(0, 0): "caption_too_short", (1, 0): "caption_too_short"}


def test_evaluation_images_stand_before_training_ones(tmp_path: Path) -> None:
    rows = [Stored(key(0), SAME, (GOOD,)), Stored(key(1), SAME, (GOOD,), "val"), Stored(key(2), SAME, (GOOD,), "test")]
    assert set(reasons(viewed(tmp_path / "a", rows, drop_leaks=False))) == {(0, 0), (1, 0)}
    rows[2] = Stored(key(2), SAME, (SHORT,), "test")
    assert reasons(viewed(tmp_path / "b", rows, drop_leaks=False)) == {
        (0, 0): "duplicate_image",
        (2, 0): "caption_too_short",
    }


def test_a_leak_goes_even_where_the_evaluation_image_is_not_kept(tmp_path: Path) -> None:
    rows = [Stored(key(0), SAME, (GOOD,)), Stored(key(1), SAME, (SHORT,), "test")]
    run = viewed(tmp_path, rows)
    assert reasons(run) == {(0, 0): "copy_of_evaluation_image", (1, 0): "caption_too_short"}


def test_train_repeats_the_choice_of_base_or_makes_its_own(tmp_path: Path) -> None:
    """Chosen in `base`, a copy does not come back; a rule of `train` chooses among what its other rules leave."""
    rows = [Stored(key(n), SAME, (GOOD,)) for n in range(2)]
    low = {"scores": "s", "column": "v", "min": 0.5}
    own = {"scores": "duplicates", "column": "bytes_group", "unique": True, "name": "copy"}
    for name, drop, train, expected in (
        ("a", True, [low], {(0, 0): "v_out_of_range", (1, 0): "duplicate_image"}),
        ("b", False, [own, low], {(0, 0): "v_out_of_range"}),
        ("c", False, [own], {(1, 0): "copy"}),
    ):
        run = viewed(tmp_path / name, rows, {"train": {"rules": train}}, drop_duplicates=drop)
        make_scores(run, "s", {"v": [0.1, 0.9]})
        build_train_view(run, InProcess())
        assert reasons(run, "train") == expected


def test_every_group_keeps_one_and_no_two() -> None:
    """Property, on random groups of three kinds: who is dropped is in a group of its kind with one that stands before it; no two kept
    images share a group; and whoever is dropped leads, through such groups, to a kept one."""
    rules = [ScoreRule(scores="duplicates", column=c, unique=True, name=c) for c in ("url", "bytes", "near")]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        n = 80
        columns = {c: [None if g > 20 else f"g{g}" for g in rng.integers(0, 40, n)] for c in ("url", "bytes", "near")}
        keys = [key(int(i)) for i in rng.permutation(n)]
        split = rng.choice(["train", "val", "test"], n)
        dropped = copies_to_drop(pa.table({"key": keys, "split": split, **columns}), rules)
        for column, groups in columns.items():
            kept = [g for k, g in zip(keys, groups, strict=True) if g and k not in dropped]
            assert len(kept) == len(set(kept))
            for g in {g for k, g in zip(keys, groups, strict=True) if g and dropped.get(k) == column}:
                members = [k for k, other in zip(keys, groups, strict=True) if other == g]
                assert sum(dropped.get(k) == column for k in members) < len(members)
