"""`scores/basic` and `scores/duplicates` over datasets made in memory."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.pipeline.errors import Code, UserError
from data.pipeline.executors import InProcess
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.scores.basic import build_basic_scores, image_scores
from data.scores.duplicates import build_duplicates
from data.scores.near import Looks, near_any_of, near_groups
from data.scores.settings import DuplicatesSettings
from tests.conftest import exit_code_with_fault, make_config, tree_bytes
from tests.data.made_dataset import Stored, encoded, make_dataset, photo


def key(number: int) -> str:
    return f"{number:09d}"


def plain(number: int, **facts: Any) -> Stored:
    return Stored(key(number), facts.pop("image", encoded(photo(number))), **facts)


def open_run(folder: Path, **views: Any) -> Run:
    return Run.open(make_config(folder, views=views))


def scored(run: Run) -> None:
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())


def rows(run: Run, scores: str) -> dict[tuple[str, int], dict[str, Any]]:
    artifact = run.scores(scores)
    tables = [pq.read_table(artifact.folder / f"{receipt.name}.parquet") for receipt in artifact.receipts()]
    return {(row["key"], row["caption_index"]): row for table in tables for row in table.to_pylist()}


SHARDS = (
    (
        plain(0, captions=("a red house", "a red house", "IMG_0001"), size=(300, 200), nsfw="UNLIKELY", watermark=0.25),
        plain(1, reason="timeout"),
        plain(2, split="test", extra={"score": 1, "flag": True, "word": "x", "mixed": 1, "none": None}),
    ),
    (
        plain(3, captions=("A photograph of two dogs at sea",), extra={"score": 0.5, "mixed": "y"}),
        plain(4, split="val"),
    ),
)


def test_one_row_for_every_pair_of_a_stored_sample(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    make_dataset(run, SHARDS)
    artifact = build_basic_scores(run, InProcess())
    found = rows(run, "basic")
    assert list(found) == [(key(0), 0), (key(0), 1), (key(0), 2), (key(2), 0), (key(3), 0), (key(4), 0)]
    first = found[key(0), 0]
    assert (first["min_side"], first["max_side"], first["area"], first["aspect"]) == (200, 300, 60_000, 1.5)
    assert (first["nsfw"], first["watermark"]) == ("UNLIKELY", 0.25)
    assert [found[key(0), i]["repeated_caption"] for i in range(3)] == [False, True, False]
    assert [found[key(0), i]["boilerplate_kind"] for i in range(3)] == [None, None, "file_name"]
    std, phash, colours = image_scores(photo(0))
    assert (first["pixel_std"], first["phash"], first["colours"]) == (np.float32(std), phash, colours)
    assert artifact.manifest()["counts"] == {"pairs": 6, "samples": 4}
    assert artifact.settings()["language"]["model"] == "lid.176.ftz"


def test_numeric_columns_of_the_source_are_the_same_in_every_part(tmp_path: Path) -> None:
    """What is a number wherever it is given; also in a part whose rows lack it."""
    run = open_run(tmp_path)
    make_dataset(run, [*SHARDS, (plain(9),)])
    build_basic_scores(run, InProcess())
    schemas = {
        name: pq.read_schema(run.scores("basic").folder / f"{name}.parquet") for name in ("00000", "00001", "00002")
    }
    assert schemas["00000"].equals(schemas["00001"]) and schemas["00000"].equals(schemas["00002"])
    assert [n for n in schemas["00000"].names if n.startswith("source_")] == ["source_flag", "source_score"]
    found = rows(run, "basic")
    assert [found[key(n), 0]["source_score"] for n in (0, 2, 3, 9)] == [None, 1.0, 0.5, None]
    assert found[key(2), 0]["source_flag"] == 1.0


def test_numbers_written_as_text_can_be_compared(tmp_path: Path) -> None:
    """Extra columns of a CSV are text: numbers when every cell that is not blank is one. The source's nsfw also as a number."""
    extras = [
        {"a": "0.5", "b": "1", "c": "7", "d": "1e3"},
        {"a": 2, "b": "x", "c": "", "d": "nan"},
        {"a": " -1 ", "d": "1_0"},
    ]
    run = open_run(tmp_path)
    nsfw = ("0.25", "UNSURE", None)
    make_dataset(run, [[plain(n, extra=e, nsfw=w)] for n, (e, w) in enumerate(zip(extras, nsfw, strict=True))])
    build_basic_scores(run, InProcess())
    found = [row for _, row in sorted(rows(run, "basic").items())]
    assert [n for n in found[0] if n.startswith("source_")] == ["source_a", "source_c"]
    assert [row["source_a"] for row in found] == [0.5, 2, -1] and [row["source_c"] for row in found] == [7, None, None]
    assert [row["nsfw_score"] for row in found] == [0.25, None, None] and found[1]["nsfw"] == "UNSURE"


def test_images_of_existing_tars_are_judged_by_the_originals_size(tmp_path: Path) -> None:
    """img2dataset's JSON says it; without it the tar's own size counts, and the view says so. A web image was measured."""
    from data.views.build import build_base_view

    said = {"original_width": 900, "original_height": 300}
    facts: list[dict[str, Any]] = [
        {"url": "webdataset:a.tar!0+9", "extra": said}, {"url": "webdataset:a.tar!9+9", "extra": {"original_width": "900"}}, {"extra": said},
    ]  # fmt: skip
    for name, some in (("mixed", facts), ("all", facts[:1])):
        run = Run.open(make_config(tmp_path / name, views={"base": {"min_side": 257}}))
        make_dataset(run, [[plain(n, **f) for n, f in enumerate(some)]])
        scored(run)
        found = [row for _, row in sorted(rows(run, "basic").items())]
        assert [(r["min_side"], r["max_side"], r["area"]) for r in found] == [
            (300, 900, 270_000),
            (256, 256, 65_536),
            (256, 256, 65_536),
        ][: len(some)]
        assert build_base_view(run, InProcess()).manifest()["counts"]["kept_pairs"] == 1
        told = [text for text in run.view("base").settings()["deviations"] if "size in the tar" in text]
        assert len(told) == (name == "mixed")
        assert run.scores("basic").manifest()["counts"].get("sized_as_in_tar", 0) == (name == "mixed")


def test_uniform_and_noisy_images() -> None:
    flat = image_scores(np.full((20, 30, 3), 7, np.uint8))
    assert flat[0] == 0 and set(flat[2]) == {7}
    halves = np.zeros((16, 16, 3), np.uint8)
    halves[:, 8:] = 255
    assert image_scores(halves)[0] == pytest.approx(127.5)


def test_a_shard_that_is_not_its_ledgers_is_refused(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    make_dataset(run, SHARDS)
    shutil.copy(run.dataset.folder / "shards" / "00001.tar", run.dataset.folder / "shards" / "00000.tar")
    with pytest.raises(UserError, match="00000.tar holds 2 samples, its ledger says 2 or others"):
        build_basic_scores(run, InProcess())


def build_both(folder: Path) -> None:
    run = open_run(folder)
    scored(run)


def test_workers_do_not_change_a_byte(tmp_path: Path, executor: Any) -> None:
    here, there = open_run(tmp_path / "a"), open_run(tmp_path / "b")
    for run in (here, there):
        make_dataset(run, SHARDS)
    build_basic_scores(here, InProcess())
    build_basic_scores(there, executor)
    assert tree_bytes(here.scores("basic").folder) == tree_bytes(there.scores("basic").folder)


@pytest.mark.parametrize("fault", ["part@00001", "receipt@00000", "manifest"])
def test_sigkill_then_the_same_command_gives_the_same_bytes(tmp_path: Path, fault: str) -> None:
    whole, killed = open_run(tmp_path / "a"), open_run(tmp_path / "b")
    for run in (whole, killed):
        make_dataset(run, SHARDS)
    scored(whole)
    assert exit_code_with_fault(fault, build_both, tmp_path / "b") == -signal.SIGKILL
    scored(killed)
    for name in ("basic", "duplicates"):
        assert tree_bytes(killed.scores(name).folder) == tree_bytes(whole.scores(name).folder)


def test_who_are_copies_of_each_other(tmp_path: Path) -> None:
    """A group's first is in the most protected split, then has the smallest key; near copies are not byte copies."""
    run = open_run(tmp_path)
    again = encoded(photo(5), "JPEG", quality=85)
    make_dataset(
        run,
        [
            (
                plain(0, image=encoded(photo(7)), captions=("first",)),
                plain(1, image=encoded(photo(7)), captions=("second", "Second ")),
                plain(2, image=encoded(photo(7)), split="test", captions=("third",)),
                plain(3, image=encoded(photo(5)), captions=("second",)),
            ),
            (
                plain(4, image=again, split="val"),
                plain(5, image=encoded(photo(15)), url="http://example.org/x.jpg#top"),
                plain(6, url="https://example.org/x.jpg"),
                plain(7, image=encoded(photo(8)), original=b"the same original"),
                plain(8, image=encoded(photo(9)), original=b"the same original"),
                plain(10, image=encoded(photo(9))),
            ),
        ],
    )
    scored(run)
    found = {k[0]: row for k, row in rows(run, "duplicates").items()}
    expected = {
        "url_group": {5: 5, 6: 5},
        # 8 has the original of 7 and the stored bytes of 10: one image
        "bytes_group": {0: 2, 1: 2, 2: 2, 7: 7, 8: 7, 10: 7},
        "near_group": {0: 2, 1: 2, 2: 2, 3: 4, 4: 4, 8: 8, 10: 8},
        "eval_copy_of": {0: 2, 1: 2, 3: 4},
    }
    for name, wanted in expected.items():
        assert {k: row[name] for k, row in found.items() if row[name]} == {key(k): key(v) for k, v in wanted.items()}, (
            name
        )
    assert found[key(2)]["split"] == "test" and found[key(4)]["split"] == "val"
    counts = run.scores("duplicates").manifest()["counts"]
    assert counts == {
        "pairs": 11,
        "samples": 10,
        "url_copies": 1,
        "bytes_copies": 4,
        "near_copies": 4,
        "eval_copies": 3,
    }
    captions = {k: row["caption_copies"] for k, row in rows(run, "duplicates").items()}
    assert (
        captions[key(1), 0] == captions[key(1), 1] == captions[key(3), 0] == 2
    )  # two images carry it, one of them twice
    assert captions[key(0), 0] == 1


def test_a_retry_shard_appended_later(tmp_path: Path) -> None:
    """A key that failed in its own shard arrives in a later part: old parts stand, its copies are found."""
    run = open_run(tmp_path)
    shards = [
        (plain(0, image=encoded(photo(3)), reason="timeout", split="test"), plain(1, image=encoded(photo(3)))),
        (plain(2),),
    ]
    make_dataset(run, shards)
    scored(run)
    before = tree_bytes(run.scores("basic").folder)
    assert rows(run, "duplicates")[key(1), 0]["eval_copy_of"] is None
    make_dataset(run, shards, retries=[(plain(0, image=encoded(photo(3)), split="test"),)])
    with pytest.raises(UserError, match="make dataset") as error:
        Lineage(run).require("scores/duplicates")
    assert error.value.code == Code.STALE
    scored(run)
    after = tree_bytes(run.scores("basic").folder)
    assert {name: after[name] for name in before if name.endswith("parquet")} == {
        name: content for name, content in before.items() if name.endswith("parquet")
    }
    assert list(rows(run, "duplicates")) == [(key(1), 0), (key(2), 0), (key(0), 0)]
    assert rows(run, "duplicates")[key(1), 0]["eval_copy_of"] == key(0)


def test_nothing_is_compared_again_when_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tmp_path)
    make_dataset(run, SHARDS)
    scored(run)
    monkeypatch.setattr("data.scores.duplicates._answers", lambda *_: pytest.fail("compared again"))
    scored(run)


def test_scores_of_an_empty_dataset(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    make_dataset(run, [(plain(0, reason="timeout"),)])
    scored(run)
    assert rows(run, "basic") == rows(run, "duplicates") == {}


def looks(*images: tuple[int, int, float]) -> Looks:
    """(hash, grey level of every cell, contrast) of each image."""
    hashes, levels, std = zip(*images, strict=True)
    colours = np.repeat(np.array(levels, np.uint8)[:, None], 48, axis=1)
    return Looks(np.array(hashes, np.uint64), colours, np.array(std))


def test_near_copies_need_hash_colours_and_contrast() -> None:
    settings = DuplicatesSettings(distance=2, colour_tolerance=10, min_pixel_std=3)
    images = looks((0, 100, 50), (3, 110, 50), (3, 121, 50), (7, 100, 50), (0, 100, 2.9), (0, 90, 3))
    assert near_groups(images, settings).tolist() == [0, 0, 2, 0, 4, 0], "7 is near 3, which is near 0"
    anything = DuplicatesSettings(distance=2, colour_tolerance=255, min_pixel_std=0)
    assert near_groups(images, anything).tolist() == [0, 0, 0, 0, 0, 0]


def test_near_groups_are_those_of_comparing_all_with_all() -> None:
    """Property: random crowded hashes; two images are in one group if and only if a chain of near images joins them."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        hashes = (rng.integers(0, 2, (120, 13)) << np.arange(13)).sum(axis=1).astype(np.uint64)
        levels = rng.choice([0, 100], 120).astype(np.uint8)
        images = looks(*((int(h), int(level), 9.0) for h, level in zip(hashes, levels, strict=True)))
        found = near_groups(images, DuplicatesSettings(distance=2, min_pixel_std=0)).tolist()
        near = (np.bitwise_count(hashes[:, None] ^ hashes[None]) <= 2) & (levels[:, None] == levels[None])
        expected = list(range(120))
        for _ in range(120):
            expected = [min(expected[j] for j in np.flatnonzero(near[i])) for i in range(120)]
        assert found == expected and 5 < len(set(found)) < 115


def test_many_equal_looks_cost_little() -> None:
    """A placeholder encoded 100,000 times with slightly different colours."""
    n = 100_000
    rng = np.random.default_rng(0)
    images = Looks(np.full(n, 5, np.uint64), (100 + rng.integers(0, 3, (n, 48))).astype(np.uint8), np.full(n, 40.0))
    assert (near_groups(images, DuplicatesSettings()) == 0).all()
    few = images[np.arange(200)]
    assert (near_any_of(images, few, DuplicatesSettings()) >= 0).all()


def test_the_first_near_evaluation_image_is_named() -> None:
    settings = DuplicatesSettings(distance=2, colour_tolerance=10, min_pixel_std=3)
    training = looks((1, 100, 50), (1, 200, 50), (7 << 40, 100, 50), (1, 100, 1))
    evaluation = looks((1, 100, 1), (0, 100, 50), (1, 100, 50), (0, 100, 50), (1, 200, 50))
    assert near_any_of(training, evaluation, settings).tolist() == [1, 4, -1, -1]
