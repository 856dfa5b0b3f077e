"""Random kills and a scheduler that is not ours. Slow: run by `make test-slow`."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data.dataset.build import build_dataset
from data.pipeline.errors import StageFailed, UserError
from data.pipeline.executors import InProcess, open_executor
from data.pipeline.run import Run
from data.pipeline.settings import ClusterSettings
from tests.conftest import REPOSITORY, make_config, save_tiny_clip, tree_bytes
from tests.data.fake_web import Web

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
ROWS = 120
BROKEN = dict.fromkeys(range(0, ROWS, 7), 503)
COMMANDS = ("data build", "data retry-failed", "data scores", "data view", "embed build")
ARTIFACTS = ("dataset", "scores/basic", "scores/duplicates", "views/base", "embeddings")


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as server:
        yield server


def write_config(folder: Path, web: Web) -> Path:
    save_tiny_clip(folder / "tiny-clip")
    urls = [f"http://{web.address}/{n}.png" for n in range(ROWS)]
    frame = pd.DataFrame({"url": urls, "caption": [f"picture {n} of noise" for n in range(ROWS)]})
    frame.to_csv(folder / "list.csv", index=False)
    dataset = {
        "table": {"path": str(folder / "list.csv"), "url": "url", "caption": "caption"}, "samples_per_shard": 10,
        "image": {"size": 16, "format": "png"}, "fetch": {"allow_private_hosts": True, "attempts": 1, "contact": "x@y.zz"},
    }  # fmt: skip
    path = folder / "c.toml"
    path.write_text(make_config(folder, dataset=dataset, cluster={"workers": 2}).to_toml())
    return path


def command_line(command: str, config: Path) -> list[str]:
    return [sys.executable, "-m", *command.split(), "--config", str(config)]


def breaks(web: Web, command: str) -> None:
    """The part of the web that `build` finds broken is mended before anything is retried."""
    web.broken = dict(BROKEN) if command == "data build" else {}


def finish(command: str, config: Path) -> float:
    start = time.monotonic()
    line = command_line(command, config)
    done = subprocess.run(line, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return time.monotonic() - start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, web: Web) -> tuple[Path, dict[str, float]]:
    """A run nobody killed, and how long each of its commands took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder, web)
    seconds = {}
    for command in COMMANDS:
        breaks(web, command)
        seconds[command] = finish(command, config)
    return folder / "t", seconds


def test_random_sigkills_then_the_same_commands_give_the_same_bytes(
    undisturbed: tuple[Path, dict[str, float]], web: Web, tmp_path: Path, sweep: int
) -> None:
    """In each command everything (driver, scheduler, workers), the driver alone, or one worker is killed at a random moment."""
    whole, seconds = undisturbed
    rng = random.Random(sweep)
    config = write_config(tmp_path, web)
    for command in COMMANDS:
        breaks(web, command)
        process = subprocess.Popen(
            command_line(command, config), cwd=REPOSITORY, env=ENVIRONMENT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(rng.uniform(0.2, 1.0) * seconds[command])
        rng.choice((kill_group, kill_driver, kill_one_worker))(process, rng)
        process.wait(300)
        kill_group(process, rng)
        finish(command, config)
    for artifact in ARTIFACTS:
        ours, theirs = (without_card(tree_bytes(folder / artifact)) for folder in (tmp_path / "t", whole))
        assert ours == theirs, f"seed {sweep}: {artifact} differs"


def without_card(tree: dict[str, bytes]) -> dict[str, bytes]:
    """The dataset card holds the day it was made."""
    return {name: content for name, content in tree.items() if name != "README.md"}


def kill_group(process: subprocess.Popen[bytes], _: random.Random) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def kill_driver(process: subprocess.Popen[bytes], _: random.Random) -> None:
    process.kill()


def kill_one_worker(process: subprocess.Popen[bytes], rng: random.Random) -> None:
    import psutil

    try:
        children = psutil.Process(process.pid).children(recursive=True)
        if children:
            rng.choice(children).kill()
    except psutil.NoSuchProcess:
        pass


class Cluster:
    """A scheduler and workers started outside, as on a cluster, reached by address."""

    def __init__(self, folder: Path, workers: int = 2, cwd: Path = REPOSITORY) -> None:
        self.scheduler = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
            stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=REPOSITORY,
        )  # fmt: skip
        assert self.scheduler.stderr is not None
        lines = iter(self.scheduler.stderr)
        self.address = next(found.group() for line in lines if (found := re.search(r"tcp://[\d.]+:\d+", line)))
        threading.Thread(target=self.scheduler.stderr.read, daemon=True).start()  # a full pipe would stop it
        worker = [
            sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-dashboard",
            "--local-directory", str(folder), "--death-timeout", "10",
        ]  # fmt: skip
        self.workers = [
            subprocess.Popen(worker, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd=cwd) for _ in range(workers)
        ]

    def close(self) -> None:
        processes: list[subprocess.Popen[Any]] = [self.scheduler, *self.workers]
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    started = Cluster(tmp_path)
    yield started
    started.close()


def test_a_running_scheduler_gives_the_same_bytes(cluster: Cluster, tmp_path: Path) -> None:
    here = Run.open(make_config(tmp_path / "here"))
    build_dataset(here, InProcess())
    there = Run.open(make_config(tmp_path / "there"))
    with open_executor(ClusterSettings(address=cluster.address), tmp_path / "scratch") as executor:
        executor.client.wait_for_workers(2, timeout=60)  # type: ignore[attr-defined]
        build_dataset(there, executor)
    assert tree_bytes(there.dataset.folder) == tree_bytes(here.dataset.folder)


@pytest.mark.timeout(180)
def test_a_scheduler_that_dies_ends_the_driver_in_one_line_and_the_rerun_completes(
    cluster: Cluster, web: Web, tmp_path: Path
) -> None:
    web.broken = {}
    config = write_config(tmp_path, web)
    line = [*command_line("data build", config), f"cluster.address={cluster.address}"]
    process = subprocess.Popen(line, cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    parts = tmp_path / "t" / "dataset" / "parts"
    while process.poll() is None and len(list(parts.glob("*.json"))) < 3:
        time.sleep(0.02)
    cluster.scheduler.kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.fullmatch(
        r"error: dataset: the Dask scheduler at tcp://\S+ is gone; .* run the same command again \[scheduler\]\n",
        stderr,
    ), stderr
    finish("data build", config)
    whole = tmp_path / "whole"
    whole.mkdir()
    other = write_config(whole, web)
    finish("data build", other)
    trees = [without_card(tree_bytes(folder / "t" / "dataset")) for folder in (tmp_path, whole)]
    assert trees[0] == trees[1]


def test_a_scheduler_that_dies_is_told_from_a_failed_part(cluster: Cluster, tmp_path: Path) -> None:
    with open_executor(ClusterSettings(address=cluster.address), tmp_path / "scratch") as executor:
        threading.Timer(1.0, cluster.scheduler.kill).start()
        with pytest.raises(StageFailed, match="the Dask scheduler at tcp://.* is gone"):
            list(executor.run("x", time.sleep, [(0.3,)] * 100, list(range(100))))


def test_no_scheduler_at_the_address_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"),
        open_executor(ClusterSettings(address="tcp://127.0.0.1:9"), tmp_path),
    ):
        pass
