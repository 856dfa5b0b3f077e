"""A small run with its embedding cache, made once, and private copies of it to damage."""

import shutil
from pathlib import Path

import pytest

from data.dataset.build import build_dataset
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.views.build import build_base_view, build_train_view
from embed.encoding.stage import build_embeddings
from embed.scores.build import build_scores
from tests.conftest import make_config, save_tiny_clip

VIEWS = {"train": {"rules": [{"scores": "similarity", "column": "similarity", "min": -1.0}]}}


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """30 images of the synthetic world in three shards, two captions each, a CLIP of 32 dimensions. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    save_tiny_clip(folder / "tiny-clip")
    run = Run.open(make_config(folder, views=VIEWS))
    build_dataset(run, InProcess())
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())
    build_embeddings(run, InProcess())
    build_scores(run, InProcess())
    build_train_view(run, InProcess())
    return run


@pytest.fixture
def own_run(made_run: Run, tmp_path: Path) -> Run:
    """A private copy of the run to damage."""
    shutil.copytree(made_run.folder, tmp_path / "t")
    shutil.copytree(made_run.folder.parent / "tiny-clip", tmp_path / "tiny-clip")
    return Run(make_config(tmp_path, views=VIEWS))
