"""The views as artifacts: reasons and counts, what narrows what, what is made again and when."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.pipeline.errors import Code, UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.views.build import build_base_view, build_train_view
from data.views.reading import kept_pairs, view_counts
from data.views.removal import removed_path
from tests.conftest import exit_code_with_fault, make_config, tree_bytes
from tests.data.made_dataset import Stored, encoded, make_dataset, make_scores, photo

CAPTION = "a photograph of two dogs"


def key(number: int) -> str:
    return f"{number:09d}"


def sample(number: int, *captions: str, **facts: Any) -> Stored:
    return Stored(
        key(number), facts.pop("image", encoded(photo(number))), captions or (f"{CAPTION} {number}",), **facts
    )


SHARDS = [
    [
        sample(0, CAPTION, CAPTION, "Click to enlarge", nsfw="UNLIKELY"),
        sample(1, split="test"),
        sample(2, image=encoded(photo(1))),
        sample(3, image=encoded(photo(1), "JPEG", quality=80)),
    ],
    [
        sample(4, image=encoded(photo(0))),
        sample(5, image=encoded(photo(0), "JPEG", quality=80), nsfw="NSFW"),
        sample(6, "dogs", size=(100, 400)),
        sample(7, image=encoded(np.full((32, 32, 3), 200, np.uint8))),
        sample(8, url="https://example.org/000000007.jpg"),
        sample(9, CAPTION),
    ],
]


def scored(folder: Path, shards: list[list[Stored]] = SHARDS, **views: Any) -> Run:
    run = Run.open(make_config(folder, views=views))
    make_dataset(run, shards)
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    return run


def reasons(run: Run, view: str = "base") -> dict[tuple[int, int], str]:
    """(number, caption_index) -> reason of the pairs that the view drops."""
    artifact = run.view(view)
    tables = [pq.read_table(artifact.folder / f"{receipt.name}.parquet") for receipt in artifact.receipts()]
    rows = [row for table in tables for row in table.to_pylist()]
    assert all(row["keep"] == (row["reason"] is None) for row in rows)
    return {(int(row["key"]), row["caption_index"]): row["reason"] for row in rows if not row["keep"]}


def test_by_default_copies_and_leaks_go(tmp_path: Path) -> None:
    run = scored(tmp_path)
    artifact = build_base_view(run, InProcess())
    assert reasons(run) == {
        (0, 1): "repeated_caption", (2, 0): "copy_of_evaluation_image", (3, 0): "copy_of_evaluation_image",
        (4, 0): "duplicate_image", (8, 0): "duplicate_url",
    }  # fmt: skip
    assert artifact.manifest()["counts"] == {
        "pairs": 12, "kept_pairs": 7, "samples": 10, "kept_samples": 6, "dropped_repeated_caption_pairs": 1,
        "dropped_copy_of_evaluation_image_pairs": 2, "dropped_duplicate_image_pairs": 1, "dropped_duplicate_url_pairs": 1,
    }  # fmt: skip
    assert kept_pairs(artifact)["key"].to_pylist() == [key(n) for n in (0, 0, 1, 5, 6, 7, 9)]


def test_without_them_everything_stays(tmp_path: Path) -> None:
    run = scored(tmp_path, base={"drop_duplicates": False, "drop_leaks": False})
    assert build_base_view(run, InProcess()).manifest()["counts"]["kept_pairs"] == 12 and reasons(run) == {}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"near_duplicates": True}, {(n, 0): "near_duplicate_image" for n in (2, 3, 4, 5)}),
        ({"min_side": 100}, {}), ({"min_side": 101}, {(6, 0): "image_too_small"}),
        ({"max_aspect": 4.0}, {}), ({"max_aspect": 3.99}, {(6, 0): "aspect_too_large"}),
        ({"min_pixel_std": 1.0}, {(7, 0): "near_uniform_image"}),
        ({"min_caption_words": 2}, {(6, 0): "caption_too_short"}),
        ({"max_caption_chars": 26}, {}), ({"max_caption_chars": 24}, {(n, 0): "caption_too_long" for n in (1, 2, 3, 4, 5, 7, 8)}),
        ({"drop_boilerplate": True}, {(0, 2): "boilerplate_caption"}),
        ({"max_caption_copies": 2}, {}), ({"max_caption_copies": 1}, dict.fromkeys(((0, 0), (0, 1), (9, 0)), "caption_too_common")),
        ({"rules": [{"scores": "basic", "column": "nsfw", "not_in": ["NSFW"]}]}, {(5, 0): "nsfw_not_allowed"} | {(n, 0): "no_score" for n in (1, 2, 3, 4, 6, 7, 8, 9)}),
        ({"rules": [{"scores": "basic", "column": "area", "above": 40_000, "name": "tiny"}]}, {(6, 0): "tiny"}),
        ({"rules": [{"scores": "duplicates", "column": "near_group", "unique": True, "name": "near"}]}, {(n, 0): "near" for n in (2, 3, 4, 5)}),
    ],
)  # fmt: skip
def test_each_setting_gives_its_reason(tmp_path: Path, settings: dict[str, Any], expected: dict[Any, str]) -> None:
    run = scored(tmp_path, base={"drop_duplicates": False, "drop_leaks": False} | settings)
    build_base_view(run, InProcess())
    assert reasons(run) == expected


def test_train_repeats_its_parents_reasons_and_adds_its_own(tmp_path: Path) -> None:
    run = scored(tmp_path, train={"rules": [{"scores": "s", "column": "v", "min": 0.5}]})
    base = build_base_view(run, InProcess())
    with pytest.raises(UserError, match="make embeddings"):
        build_train_view(run, InProcess())
    make_scores(run, "s", {"v": [0.5, 0.9, 0.49, 0.9, 0.0, 0.9, 0.9, 0.9, float("nan"), 0.9, 0.9, 0.0]}, skip=[9])
    train = build_train_view(run, InProcess())
    added = {pair: why for pair, why in reasons(run, "train").items() if pair not in reasons(run)}
    assert added == {(0, 2): "v_out_of_range", (9, 0): "v_out_of_range", (6, 0): "no_score", (7, 0): "no_score"}
    assert train.settings()["parent"] == "base" and base.settings()["parent"] is None
    before, after = base.manifest()["counts"], train.manifest()["counts"]
    assert {k: n - before.get(k, 0) for k, n in after.items() if k.startswith("dropped") and n != before.get(k)} == {
        "dropped_v_out_of_range_pairs": 2, "dropped_no_score_pairs": 2,
    }  # fmt: skip


def test_scores_in_another_order_or_of_other_pairs_are_joined_by_key(tmp_path: Path) -> None:
    run = scored(tmp_path, train={"rules": [{"scores": "s", "column": "v", "min": 5}]})
    build_base_view(run, InProcess())
    artifact = make_scores(run, "s", {"v": list(range(12))})
    for receipt in artifact.receipts():
        path = artifact.folder / f"{receipt.name}.parquet"
        table = pq.read_table(path)
        pq.write_table(table.take(list(range(len(table)))[::-1]), path)
    build_train_view(run, InProcess())
    low = [pair for pair, why in reasons(run, "train").items() if why == "v_out_of_range"]
    assert low == [(0, 0), (0, 2), (1, 0)]  # rows 0, 2 and 3; row 1 and 4 are gone for the reasons of `base`


def test_a_rule_on_a_column_that_is_not_there(tmp_path: Path) -> None:
    run = scored(tmp_path, base={"rules": [{"scores": "basic", "column": "aesthetic", "min": 5}]})
    with pytest.raises(UserError, match="reads column 'aesthetic' of scores/basic, which has caption_words, "):
        build_base_view(run, InProcess())


def test_views_without_scores_name_the_command(tmp_path: Path) -> None:
    run = Run.open(make_config(tmp_path))
    make_dataset(run, SHARDS)
    with pytest.raises(UserError, match="run `make dataset` first"):
        build_base_view(run, InProcess())
    build_basic_scores(run, InProcess())
    with pytest.raises(UserError, match=r"duplicates does not exist; run `make dataset` first"):
        build_base_view(run, InProcess())


def test_removed_samples_go_first_and_remake_only_their_parts(tmp_path: Path) -> None:
    run = scored(tmp_path)
    build_base_view(run, InProcess())
    build_train_view(run, InProcess())
    stamps = {p.name: p.stat().st_mtime_ns for name in ("base", "train") for p in run.view(name).folder.glob("0000*")}
    before = {name: run.view(name).folder / "00000.parquet" for name in ("base", "train")}
    untouched = {name: path.stat().st_mtime_ns for name, path in before.items()}
    import pyarrow as pa

    gone = pa.table({"key": [key(8), key(9), None], "entry": ["a", "b", "c"]})
    pq.write_table(gone, removed_path(run))
    build_base_view(run, InProcess())
    build_train_view(run, InProcess())
    for view in ("base", "train"):
        assert {pair: why for pair, why in reasons(run, view).items() if pair[0] > 7} == {
            (8, 0): "removed",
            (9, 0): "removed",
        }
        assert before[view].stat().st_mtime_ns == untouched[view]
    assert stamps["00001.parquet"] != run.view("train").folder.joinpath("00001.parquet").stat().st_mtime_ns


def test_stale_scores_are_refused_and_then_the_view_is_made_again(tmp_path: Path) -> None:
    run = scored(tmp_path)
    build_base_view(run, InProcess())
    first = tree_bytes(run.view("base").folder)
    shutil.rmtree(run.dataset.folder)
    changed = [[sample(0, "other words under the same picture"), *SHARDS[0][1:]], SHARDS[1]]
    make_dataset(run, changed)
    with pytest.raises(UserError, match=r"scores/basic is stale \(dataset:00000 has changed since"):
        build_base_view(run, InProcess())
    build_basic_scores(run, InProcess())
    with pytest.raises(UserError, match="scores/duplicates is stale"):
        build_base_view(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())
    second = tree_bytes(run.view("base").folder)
    assert first["00001.parquet"] == second["00001.parquet"] and first["00000.parquet"] != second["00000.parquet"]


def test_other_thresholds_need_no_image(tmp_path: Path) -> None:
    run = scored(tmp_path, base={"min_side": 64})
    build_base_view(run, InProcess())
    for tar in (run.dataset.folder / "shards").iterdir():
        tar.unlink()
    other = Run.open(make_config(tmp_path, views={"base": {"min_side": 101}}))
    assert build_base_view(other, InProcess()).manifest()["counts"]["dropped_image_too_small_pairs"] == 1


def test_another_distance_asks_for_another_comparison(tmp_path: Path) -> None:
    scored(tmp_path)
    run = Run.open(make_config(tmp_path, views={"duplicates": {"distance": 7}}))
    with pytest.raises(UserError, match=r"views.duplicates.distance was 3 when it was made") as error:
        build_base_view(run, InProcess())
    assert error.value.code == Code.STALE
    build_duplicates(run, InProcess())
    assert build_base_view(run, InProcess()).is_complete()


def build_views(folder: Path) -> None:
    run = Run.open(make_config(folder))
    build_base_view(run, InProcess())
    build_train_view(run, InProcess())


@pytest.mark.parametrize("fault", ["part@00001", "manifest"])
def test_sigkill_then_the_same_command_gives_the_same_bytes(tmp_path: Path, fault: str) -> None:
    whole, killed = scored(tmp_path / "a"), scored(tmp_path / "b")
    build_views(tmp_path / "a")
    assert exit_code_with_fault(fault, build_views, tmp_path / "b") == -signal.SIGKILL
    build_views(tmp_path / "b")
    for name in ("base", "train"):
        assert tree_bytes(killed.view(name).folder) == tree_bytes(whole.view(name).folder)


def test_an_empty_view_adds_up(tmp_path: Path) -> None:
    run = scored(tmp_path, [[sample(0, reason="timeout")]])
    assert build_base_view(run, InProcess()).manifest()["counts"] == {
        "kept_pairs": 0,
        "kept_samples": 0,
        "pairs": 0,
        "samples": 0,
    }
    table = pq.read_table(run.view("base").folder / "00000.parquet")
    assert view_counts(table)["pairs"] == 0 and table.schema.names == ["key", "caption_index", "keep", "reason"]
