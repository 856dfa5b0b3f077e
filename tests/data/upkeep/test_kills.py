"""Scores and views, killed at every named boundary one after the other, end in the bytes of an undisturbed run."""

import shutil
import signal
from pathlib import Path

import pytest

from data.dataset.build import build_dataset
from data.pipeline.errors import DiskFull
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.views.build import build_base_view, build_train_view
from tests.conftest import exit_code_with_fault, make_config, tree_bytes

STAGES = ("scores/basic", "scores/duplicates", "views/base", "views/train")
BOUNDARIES = ("plan", "attempt@00000", "part@00001", "receipt@00001", "manifest")


def open_run(folder: Path) -> Run:
    return Run.open(make_config(folder, views={"base": {"min_caption_words": 9}}))


def build(folder: Path, stage: str) -> None:
    run = open_run(folder)
    if stage == "scores/basic":
        build_basic_scores(run, InProcess())
    elif stage == "scores/duplicates":
        build_duplicates(run, InProcess())
    elif stage == "views/base":
        build_base_view(run, InProcess())
    else:
        build_train_view(run, InProcess())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    build_dataset(open_run(folder), InProcess())
    for stage in STAGES:
        build(folder, stage)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_sigkill_at_every_boundary(whole: Path, tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "t" / "config.toml").unlink()  # the run folder has another name now
    shutil.rmtree(folder / "t" / stage)
    for fault in BOUNDARIES:
        assert exit_code_with_fault(fault, build, folder, stage) == -signal.SIGKILL, fault
        assert not (folder / "t" / stage / "manifest.json").exists(), fault
    build(folder, stage)
    assert tree_bytes(folder / "t" / stage) == tree_bytes(whole / "t" / stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_resumes(
    whole: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "t" / stage)
    monkeypatch.setenv("UNCLIP_FAULT_ENOSPC", "part@00001")
    with pytest.raises(DiskFull, match="no space left while writing .* free some space and run the same command again"):
        build(folder, stage)
    monkeypatch.delenv("UNCLIP_FAULT_ENOSPC")
    build(folder, stage)
    assert tree_bytes(folder / "t" / stage) == tree_bytes(whole / "t" / stage)
