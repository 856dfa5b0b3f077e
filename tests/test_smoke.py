"""The whole system once, as the README says: its commands are parsed and run, `make demo` by its smoke twin."""

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.pipeline.artifacts import Artifact
from data.pipeline.config import parse_config
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
# Commands that would start a server, or this very test: only their targets are checked.
NOT_RUN = {"test", "test-slow", "rate", "dashboard"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"MAKEFLAGS": ""})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that `make demo`'s smoke twin leaves behind."""
    folder = tmp_path_factory.mktemp("runs")
    run(["make", "everything", "CONFIG=configs/smoke.toml", f"ARGS=run.folder={folder}"])
    return folder / "smoke"


def test_every_artifact_is_complete_and_verifies(smoke: Path) -> None:
    manifests = sorted(smoke.glob("**/manifest.json"))
    names = {m.parent.relative_to(smoke).as_posix() for m in manifests}
    assert {
        "dataset",
        "views/base",
        "clip",
        "embeddings",
        "scores/similarity",
        "views/train",
        "models/prior",
        "models/decoder",
        "models/glide",
        "humaneval/study",
    } <= names
    assert sum(name.startswith("samples/") for name in names) == 8  # two systems at three scales, and their grids
    for manifest in manifests:
        assert Artifact(manifest.parent).verify() == []


def test_report_holds_every_number_with_n_seed_and_interval(smoke: Path) -> None:
    rows = pq.read_table(smoke / "eval" / "metrics.parquet").to_pylist()
    assert {"unclip", "glide", "unclip - glide", "real", "chance"} == {row["system"] for row in rows}
    for row in rows:
        assert row["n"] >= 1 and row["seed"] is not None
        if row["system"] != "chance":
            assert row["lo"] <= row["hi"], row
    metrics = {row["metric"] for row in rows}
    assert any(m.startswith("fd[clip:") for m in metrics) and "fd[attributes]" in metrics
    assert not any(m == "fid" for m in metrics)  # only when Inception weights are given
    report = json.loads((smoke / "eval" / "report.json").read_text())
    assert report["human_evaluation"]["simulated"] is True
    html = (smoke / "eval" / "report.html").read_text()
    assert "imulated" in html and "numbers mean nothing" in html
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)


def test_the_readmes_commands_run(smoke: Path, tmp_path: Path) -> None:
    before = {m: m.read_bytes() for m in smoke.glob("**/manifest.json")}
    ran = 0
    for line in shell_lines():
        words = shlex.split(line)
        if words[0] == "make":
            targets = [w for w in words[1:] if "=" not in w]
            assert set(targets) <= TARGETS, line
            if set(targets) & (NOT_RUN | {"demo"}):
                continue  # `make demo` is the fixture
            run(["make", *targets, "CONFIG=configs/smoke.toml", f"ARGS=run.folder={smoke.parent}"])
        else:
            assert words[0] == ".venv/bin/python", line
            config, out = words.index("--config") + 1, words.index("--out") + 1
            words[config], words[out] = "configs/smoke.toml", str(tmp_path / "grid.png")
            run([*words, f"run.folder={smoke.parent}"])
            assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
        ran += 1
    assert ran >= 3
    assert {m: m.read_bytes() for m in smoke.glob("**/manifest.json")} == before  # a rerun makes nothing again


def test_the_readmes_configs_are_valid() -> None:
    assert blocks("toml")
    for block in blocks("toml"):
        parse_config(tomllib.loads(block), "README")


def test_the_readme_names_files_that_exist() -> None:
    assert "@@" not in README
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (REPOSITORY / picture).is_file(), picture
    for path in re.findall(r"`((?:data|embed|training|eval|humaneval|dashboards|docs|configs)/[\w./-]+)`", README):
        assert (REPOSITORY / path).exists(), path
