from pathlib import Path

import pytest

from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from humaneval.rating.database import open_database
from humaneval.rating.store import Store
from humaneval.study.build import build_study
from humaneval.study.study import Study
from tests.humaneval.fake_run import fake_run

LEASE_SECONDS = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with both systems' images and a built study; read only."""
    run = fake_run(tmp_path_factory.mktemp("runs"))
    build_study(run, run.config, InProcess(), precious=False)
    return run


@pytest.fixture(scope="session")
def study(run: Run) -> Study:
    return Study.of(run)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(study: Study, clock: Clock, tmp_path: Path) -> Store:
    return Store(open_database(f"sqlite:///{tmp_path}/ratings.sqlite"), study, 3, LEASE_SECONDS, clock)
