from pathlib import Path

import pytest

from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from humaneval.study.build import build_study
from tests.humaneval.fake_run import fake_config, fake_run


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a built study; its ratings are redirected by `rated` so that tests do not meet."""
    run = fake_run(tmp_path_factory.mktemp("runs"))
    build_study(run, run.config, InProcess(), precious=False)
    return run


@pytest.fixture
def rated(built: Run, tmp_path: Path) -> Run:
    """The same run with an empty database of its own."""
    return Run(fake_config(built.folder.parent, {"database": f"sqlite:///{tmp_path}/ratings.sqlite"}))


@pytest.fixture
def toml(rated: Run, tmp_path: Path) -> Path:
    path = tmp_path / "fake.toml"
    path.write_text(rated.config.to_toml())
    return path
