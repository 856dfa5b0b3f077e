"""Random kills (`--sweeps` of them) of `python -m embed build`, each followed by the same command. Slow: run by `make test-slow`."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data.dataset.build import build_dataset
from data.pipeline.config import load_config
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from embed.verify import verify_cache
from tests.conftest import REPOSITORY, make_config, save_tiny_clip, tree_bytes

pytestmark = pytest.mark.slow
SHARDS, PER_SHARD = 24, 20


def write_config(folder: Path) -> Path:
    dataset = {
        "scenes": {"samples": SHARDS * PER_SHARD, "side": 32}, "samples_per_shard": PER_SHARD, "image": {"size": 32, "format": "png"},
    }  # fmt: skip
    path = folder / "c.toml"
    path.write_text(make_config(folder, dataset=dataset, cluster={"workers": 2}, embeddings={"batch": 2}).to_toml())
    return path


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "embed", "build", "--config", str(config)]


def finish(config: Path) -> None:
    """In one process: the number of workers changes no byte, and theirs cost ten seconds to start."""
    done = subprocess.run(
        [*command(config), "cluster.workers=0"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose dataset is made, and whose cache nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    save_tiny_clip(folder / "tiny-clip")
    config = write_config(folder)
    build_dataset(Run.open(load_config(config)), InProcess())
    finish(config)
    return folder


def test_a_random_sigkill_then_the_same_command_gives_the_same_bytes(
    undisturbed: Path, tmp_path: Path, sweep: int
) -> None:
    """Everything (driver, scheduler, workers), the driver alone, or one worker, some milliseconds after a random number of parts."""
    rng = random.Random(sweep)
    shutil.copytree(undisturbed / "tiny-clip", tmp_path / "tiny-clip")
    shutil.copytree(undisturbed / "t/dataset", tmp_path / "t/dataset")
    config = write_config(tmp_path)
    parts, wanted = tmp_path / "t/embeddings/parts", rng.randrange(SHARDS)
    process = subprocess.Popen(
        command(config), cwd=REPOSITORY, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(parts.glob("*.json"))) < wanted:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    kill = rng.choice((kill_group, kill_driver, kill_one_worker))
    kill(process, rng)
    process.wait(300)
    kill_group(process, rng)
    if kill is not kill_one_worker:
        assert process.returncode == -signal.SIGKILL, "the kill came too late to tell anything"
    finish(config)
    assert tree_bytes(tmp_path / "t/embeddings") == tree_bytes(undisturbed / "t/embeddings")
    if sweep == 0:
        assert verify_cache(Run(load_config(config))) == []


def kill_group(process: "subprocess.Popen[bytes]", _: random.Random) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def kill_driver(process: "subprocess.Popen[bytes]", _: random.Random) -> None:
    process.kill()


def kill_one_worker(process: "subprocess.Popen[bytes]", rng: random.Random) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        if children:
            rng.choice(children).kill()
