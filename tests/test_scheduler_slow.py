"""The whole system on a scheduler that is not ours, with workers that were started in another folder. Slow: `make test-slow`."""

import subprocess
from pathlib import Path

import pytest

from data.pipeline.artifacts import Artifact
from tests.conftest import REPOSITORY
from tests.data.dataset.test_kills_slow import ENVIRONMENT, Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STAGES = (
    "data build", "data scores", "data view", "training clip", "eval classifier", "embed build", "embed scores",
    "data view --name train", "training all", "eval generate", "eval metrics", "humaneval build",
)  # fmt: skip
DATED = ("eval/report",)  # holds the day it was made


def run_all(folder: Path, *overrides: str) -> dict[str, str]:
    """Every stage of the smoke profile; the digest of every artifact."""
    for stage in STAGES:
        line = [
            ".venv/bin/python",
            "-m",
            *stage.split(),
            "--config",
            "configs/smoke.toml",
            f"run.folder={folder}",
            "embeddings.device=cpu",  # a scheduler's workers know their own device: "auto" would be recorded as such
            *overrides,
        ]
        done = subprocess.run(line, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{stage}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    manifests = sorted((folder / "smoke").glob("**/manifest.json"))
    names = {m.parent.relative_to(folder / "smoke").as_posix(): m.parent for m in manifests}
    return {name: Artifact(path).digest() for name, path in names.items() if name not in DATED}


def test_a_scheduler_with_workers_elsewhere_gives_the_digests_of_one_process(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    here = run_all(tmp_path / "here", "cluster.workers=0")
    cluster = Cluster(tmp_path, cwd=elsewhere)
    try:
        there = run_all(tmp_path / "there", f"cluster.address={cluster.address}")
    finally:
        cluster.close()
    assert len(here) > 20 and here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []
    logs = [path.read_text() for path in (tmp_path / "there" / "smoke" / "logs").glob("*.jsonl")]
    assert sum(log.count('"pid"') for log in logs) > 20
