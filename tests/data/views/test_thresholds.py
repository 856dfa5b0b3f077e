"""Another threshold: the view is made again in place, what was made from it is named, and what is precious stays."""

import signal
from pathlib import Path
from typing import Any

import pytest

from data.__main__ import COMMANDS
from data.pipeline.cli import front_door
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.reports.status import run_status
from data.views.build import build_base_view, build_train_view
from tests.conftest import exit_code_with_fault, make_config, tree_bytes
from tests.data.upkeep.test_removal import make

RULE = {"scores": "basic", "column": "caption_words", "max": 7}


def open_run(folder: Path, base: int = 1, **train: Any) -> Run:
    return Run.open(make_config(folder, views={"base": {"min_caption_words": base}, "train": train}))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make(open_run(tmp_path))


def states(run: Run) -> dict[str, str]:
    return {s.name: s.state for s in run_status(run)}


def write_weights(spec: PartSpec, attempt: Path) -> dict[str, int]:
    (attempt / "weights").write_text("hours of work")
    return {}


def prior(run: Run) -> Stage:
    """As training records it."""
    part = PartSpec("model", (Input("views/train", Lineage(run).require("views/train").digest()),))
    return Stage("train-prior", 1, run.folder / "models" / "prior", {}, [part], write_weights, precious=True)


def test_only_the_view_whose_threshold_moved_is_made_again(run: Run, tmp_path: Path) -> None:
    before = {name: tree_bytes(run.view(name).folder) for name in ("base", "train")}
    moved = open_run(tmp_path, rules=[RULE])
    assert (states(moved)["views/base"], states(moved)["views/train"]) == ("complete", "stale")
    line = next(s.detail for s in run_status(moved) if s.name == "views/train")
    assert line.startswith("views.train.rules was [] when it was made, test config says [{")
    with pytest.raises(UserError, match=r"views/train is stale .*run `make embeddings` first"):
        Lineage(moved).require("views/train")
    assert build_train_view(moved, InProcess()).manifest()["counts"]["dropped_caption_words_out_of_range_pairs"] > 0
    assert tree_bytes(moved.view("base").folder) == before["base"]
    assert moved.view("train").verify() == [] and set(states(moved).values()) == {"complete", "missing"}
    assert "max = 7" in (run.folder / "config.toml").read_text(), "the resolved config is saved again"
    build_train_view(open_run(tmp_path), InProcess())
    assert tree_bytes(run.view("train").folder) == before["train"]


def test_what_narrows_a_view_follows_it(run: Run, tmp_path: Path) -> None:
    stage = prior(run)
    run_stage(stage, InProcess())
    weights = tree_bytes(stage.folder)
    moved = open_run(tmp_path, base=9)
    assert (states(moved)["views/base"], states(moved)["views/train"]) == ("stale", "stale")
    with pytest.raises(UserError, match=r"views/base is stale \(views.base.min_caption_words was 1 .* says 9\)"):
        build_train_view(moved, InProcess())
    build_base_view(moved, InProcess())
    assert (states(moved)["views/base"], states(moved)["views/train"]) == ("complete", "stale")
    with pytest.raises(UserError, match=r"views/train is stale .*views/base:00000 has changed since"):
        prior(moved)
    build_train_view(moved, InProcess())
    assert (states(moved)["views/train"], states(moved)["models/prior"]) == ("complete", "stale")
    with pytest.raises(UserError, match="made from inputs that have changed since"):
        run_stage(prior(moved), InProcess())
    assert tree_bytes(stage.folder) == weights, "trained weights are never made again by themselves"


def test_the_front_door_tries_another_threshold(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = tmp_path / "c.toml"
    toml.write_text(run.config.to_toml())

    def data(*arguments: str) -> str:
        assert front_door("data", "", COMMANDS, [*arguments[:1], "--config", str(toml), *arguments[1:]]) == 0
        return capsys.readouterr().out

    assert "view base keeps 60 of 60 pairs" in data("view")
    assert "keeps 60 of" not in data("view", "views.base.min_caption_words=9")
    assert "view base keeps 60 of 60 pairs" in data("view")
    assert "views.base.min_caption_words was 1 when it was made" in data("status", "views.base.min_caption_words=9")


def view_with_nine(folder: Path) -> None:
    build_base_view(open_run(folder, base=9), InProcess())


@pytest.mark.parametrize("fault", ["plan", "part@00001", "manifest"])
def test_killed_on_the_way_to_another_threshold(run: Run, tmp_path: Path, fault: str) -> None:
    whole = tree_bytes(build_base_view(open_run(tmp_path, base=9), InProcess()).folder)
    build_base_view(open_run(tmp_path), InProcess())
    assert exit_code_with_fault(fault, view_with_nine, tmp_path) == -signal.SIGKILL
    assert not run.view("base").is_complete()
    view_with_nine(tmp_path)
    assert tree_bytes(run.view("base").folder) == whole
    assert run.view("base").verify() == []
