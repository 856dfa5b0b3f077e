"""Random kills and a scheduler that is not ours. Slow: run by `make test-slow`."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data.dataset import build_dataset
from data.executors import InProcess, open_executor
from data.run import Run
from data.settings import ClusterSettings
from tests.conftest import REPOSITORY, make_config, save_tiny_clip, tree_bytes

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}


def commands(config: Path) -> list[list[str]]:
    return [[sys.executable, "-m", room, "build", "--config", str(config)] for room in ("data", "embed")]


def write_config(folder: Path) -> Path:
    save_tiny_clip(folder / "tiny-clip")
    path = folder / "c.toml"
    scenes = {"scenes": {"samples": 120, "side": 32}, "samples_per_shard": 10, "image": {"size": 32, "format": "png"}}
    path.write_text(make_config(folder, dataset=scenes, cluster={"workers": 2}).to_toml())
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run nobody killed, and how long its two commands took together."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder)
    start = time.monotonic()
    for command in commands(config):
        subprocess.run(command, check=True, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True)
    return folder / "t", time.monotonic() - start


@pytest.mark.parametrize("seed", range(10))
def test_random_sigkills_then_the_same_commands_give_the_same_bytes(
    undisturbed: tuple[Path, float], tmp_path: Path, seed: int
) -> None:
    """Twice in each run the whole process group (driver, scheduler, workers) is killed at a random moment, or one worker is."""
    whole, seconds = undisturbed
    rng = random.Random(seed)
    config = write_config(tmp_path)
    for command in commands(config):
        for _ in range(2):
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=ENVIRONMENT,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(rng.uniform(0.1, 0.6) * seconds)
            kill_group(process) if rng.random() < 0.6 else kill_one_worker(process, rng)
            process.wait(120)
            kill_group(process)
        subprocess.run(command, check=True, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, timeout=120)
    for artifact in ("dataset", "embeddings"):
        assert tree_bytes(tmp_path / "t" / artifact) == tree_bytes(whole / artifact), f"seed {seed}: {artifact} differs"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def kill_one_worker(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    import psutil

    try:
        children = psutil.Process(process.pid).children(recursive=True)
        if children:
            rng.choice(children).kill()
    except psutil.NoSuchProcess:
        pass


def test_a_running_scheduler_gives_the_same_bytes(tmp_path: Path) -> None:
    """A scheduler and workers started outside, as on a cluster, reached by address."""
    here = Run.open(make_config(tmp_path / "here"))
    build_dataset(here, InProcess())
    processes: list[subprocess.Popen[Any]] = []
    try:
        scheduler = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=REPOSITORY
        )  # fmt: skip
        processes.append(scheduler)
        assert scheduler.stderr is not None
        address = next(found.group() for line in scheduler.stderr if (found := re.search(r"tcp://[\d.]+:\d+", line)))
        for _ in range(2):
            worker = [
                sys.executable,
                "-m",
                "distributed.cli.dask_worker",
                address,
                "--nthreads",
                "1",
                "--no-dashboard",
                "--local-directory",
                str(tmp_path),
            ]
            processes.append(subprocess.Popen(worker, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd=REPOSITORY))
        there = Run.open(make_config(tmp_path / "there"))
        with open_executor(ClusterSettings(address=address), tmp_path / "scratch") as executor:
            executor.client.wait_for_workers(2, timeout=60)  # type: ignore[attr-defined]
            build_dataset(there, executor)
    finally:
        for process in processes:
            process.kill()
    assert tree_bytes(there.dataset.folder) == tree_bytes(here.dataset.folder)


def test_no_scheduler_at_the_address_is_one_line(tmp_path: Path) -> None:
    from data.errors import UserError

    with (
        pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"),
        open_executor(ClusterSettings(address="tcp://127.0.0.1:9"), tmp_path),
    ):
        pass
