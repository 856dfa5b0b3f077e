"""What was removed stays removed: also what is stored later, also its copies, also when the dataset is made anew."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from data.dataset.build import build_dataset
from data.dataset.shards import ShardReader
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.reports.status import run_status
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.upkeep.apply_removal import remove
from data.upkeep.retry import reasons_to_retry, retry
from data.views.build import build_base_view, build_train_view
from data.views.reading import kept_pairs
from data.views.removal import parse_entry, removed_keys, resolve
from tests.conftest import make_config
from tests.data.fake_web import Web, picture

pytestmark = pytest.mark.timeout(60)
FAILING, COPY = "000000003", "000000006"


def open_run(folder: Path, web: Web, names: list[str] | None = None) -> Run:
    """Six pictures, four a shard, and picture 2 once more under another URL (key 6)."""
    names = names or [*(f"{n}.png" for n in range(6)), "2.png?again"]
    rows = [(f"http://{web.address}/{name}", f"a picture called {name}") for name in names]
    pd.DataFrame(rows, columns=["url", "caption"]).to_csv(folder / "list.csv", index=False)
    dataset = {
        "table": {"path": str(folder / "list.csv"), "url": "url", "caption": "caption"}, "samples_per_shard": 4,
        "image": {"size": 16, "format": "png"},
        "fetch": {"allow_private_hosts": True, "attempts": 1, "contact": "me@example.com"},
    }  # fmt: skip
    views = {"base": {"drop_duplicates": False, "drop_leaks": False}}
    return Run.open(
        make_config(folder, run={"name": "t", "folder": str(folder), "seed": 1}, dataset=dataset, views=views)
    )


def score_and_view(run: Run) -> set[str]:
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    kept = set(kept_pairs(build_base_view(run, InProcess()))["key"].to_pylist())
    assert kept == set(kept_pairs(build_train_view(run, InProcess()))["key"].to_pylist())
    return kept


def take_out(run: Run, *lines: str) -> str:
    entries = [entry for line in lines if (entry := parse_entry(line)) is not None]
    assert len(entries) == len(lines)
    return "\n".join(remove(run, resolve(run, entries, 3), InProcess()))


def by_original(folder: Path, n: int) -> str:
    return hashlib.sha256(picture(n)).hexdigest()


def whole_run(folder: Path, web: Web) -> Run:
    """The same list where nothing failed: what its images are, once stored."""
    (folder / "whole").mkdir()
    run = open_run(folder / "whole", web)
    build_dataset(run, InProcess())
    score_and_view(run)
    return run


def by_phash(folder: Path, n: int) -> str:
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "whole" / "t" / "scores" / "basic" / "00000.parquet").to_pylist()
    value = next(row["phash"] for row in rows if int(row["key"]) == n)
    return f"phash:{value ^ 0b1001:016x}"


@pytest.mark.parametrize("name", [by_original, by_phash])
def test_an_entry_holds_for_what_is_stored_later(web: Web, tmp_path: Path, name: Callable[[Path, int], str]) -> None:
    whole_run(tmp_path, web)
    web.broken = {3: 503}
    run = open_run(tmp_path, web)
    build_dataset(run, InProcess())
    before = score_and_view(run)
    text = take_out(run, name(tmp_path, 3))
    assert "1 entry without a candidate so far" in text and "0 keys named" in text and removed_keys(run) == frozenset()
    web.broken = {}
    retry(run, reasons_to_retry(()), InProcess())
    assert FAILING in ShardReader(run.dataset)
    assert score_and_view(run) == before
    assert removed_keys(run) == {FAILING}
    assert next(s for s in run_status(run) if s.name == "views/base").state == "complete"


@pytest.mark.parametrize("by", ["url", "key", "sha256"])
def test_copies_go_along_by_default(web: Web, tmp_path: Path, by: str) -> None:
    run = open_run(tmp_path, web)
    build_dataset(run, InProcess())
    assert COPY in score_and_view(run)
    line = {"url": f"http://{web.address}/2.png", "key": "000000002", "sha256": by_original(tmp_path, 2)}[by]
    text = take_out(run, line)
    kept = set(kept_pairs(run.view("base"))["key"].to_pylist())
    assert kept == {f"{n:09d}" for n in (0, 1, 3, 4, 5)}
    assert (f"1 more candidate with the same original or stored bytes: {COPY}" in text) == (by != "sha256")
    assert "2 keys named, 2 of them newly removed, 2 with a stored image; 2 removed in all" in text
    assert "scores/basic: holds rows of 2 of them" in text
    assert "2 keys named, 0 of them newly" in take_out(run, "000000002")


def test_a_copy_that_is_stored_later_goes_along(web: Web, tmp_path: Path) -> None:
    run = open_run(tmp_path, web)
    web.broken_paths = {"/2.png"}  # the picture itself is stored, from its second URL
    build_dataset(run, InProcess())
    before = score_and_view(run)
    assert COPY in before and "000000002" not in before
    take_out(run, f"key:{COPY}")
    web.broken_paths = set()
    retry(run, reasons_to_retry(()), InProcess())
    assert "000000002" in ShardReader(run.dataset)
    assert score_and_view(run) == before - {COPY}
    assert removed_keys(run) == {"000000002", COPY}


def test_entries_hold_in_a_dataset_that_is_made_anew(web: Web, tmp_path: Path) -> None:
    """Keys of another plan name other images: the removed URL is removed, and nobody in its stead."""
    run = open_run(tmp_path, web)
    build_dataset(run, InProcess())
    score_and_view(run)
    take_out(run, f"http://{web.address}/4.png")
    assert removed_keys(run) == {"000000004"}
    shutil.rmtree(run.dataset.folder)
    run = open_run(tmp_path, web, [f"{n}.png" for n in (9, 4, 0, 1, 3, 5)])
    build_dataset(run, InProcess())
    assert removed_keys(run) == {"000000001"}
    assert score_and_view(run) == {f"{n:09d}" for n in (0, 2, 3, 4, 5)}
