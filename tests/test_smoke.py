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
from data.pipeline.config import load_config, parse_config
from data.pipeline.lineage import graph, row_of
from data.pipeline.run import Run
from data.reports.status import run_status
from tests.conftest import REPOSITORY
from tests.test_docs import diagram

README = (REPOSITORY / "README.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


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


def test_every_artifact_is_complete_verifies_and_is_in_the_stage_tables(smoke: Path) -> None:
    run_of = Run(load_config("configs/smoke.toml", [f"run.folder={smoke.parent}"]))
    manifests = sorted(smoke.glob("**/manifest.json"))
    for manifest in manifests:
        assert Artifact(manifest.parent).verify() == []
        assert row_of(manifest.parent.relative_to(smoke).as_posix()) is not None, manifest
    assert sum("generations" in m.parts for m in manifests) == 8  # two systems at three scales, and their grids
    states = {status.name: status.state for status in run_status(run_of)}
    assert set(states.values()) == {"complete"} and len(states) >= 17, states


def test_the_lineage_drawn_in_the_docs_holds_every_recorded_edge(smoke: Path) -> None:
    nodes = graph(Run(load_config("configs/smoke.toml", [f"run.folder={smoke.parent}"])))
    kind = {node.name: row.name for node in nodes if (row := row_of(node.name))}
    edges = {(kind[other], kind[node.name]) for node in nodes for other in node.made_from}
    assert len(edges) > 20 and {edge for edge in edges if edge[0] != edge[1]} <= diagram()[1]


def test_report_holds_every_number_with_n_seed_and_interval(smoke: Path) -> None:
    rows = pq.read_table(smoke / "eval" / "metrics" / "metrics.parquet").to_pylist()
    assert {"unclip", "glide", "unclip - glide", "real", "chance"} == {row["system"] for row in rows}
    for row in rows:
        assert row["n"] >= 1 and row["seed"] is not None
        if row["system"] != "chance":
            assert row["lo"] <= row["hi"], row
    assert {"fd", "clip_score", "attribute_accuracy"} <= {row["family"] for row in rows}
    assert "fid" not in {row["family"] for row in rows}  # only when Inception weights are given
    report = json.loads((smoke / "eval" / "report" / "report.json").read_text())
    assert report["human_evaluation"]["simulated"] is True
    assert {"training all", "eval generate"} <= {stage["name"] for stage in report["cost"]["stages"]}
    assert {"dataset", "models/prior", "eval/metrics"} <= {node["name"] for node in report["lineage"]}
    html = (smoke / "eval" / "report" / "report.html").read_text()
    assert "imulated" in html and "numbers mean nothing" in html
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)


def test_the_readmes_commands_run(smoke: Path, tmp_path: Path) -> None:
    """The fixture has run the stages; what is left is run here, and once more what must then make nothing again."""
    before = {m: m.read_bytes() for m in smoke.glob("**/manifest.json")}
    here = ["CONFIG=configs/smoke.toml", f"ARGS=run.folder={smoke.parent}"]
    targets: list[str] = []
    for line in shell_lines():
        words = shlex.split(line)
        if words[0] == "make":
            targets += [w for w in words[1:] if "=" not in w]
            continue
        assert words[0] == ".venv/bin/python", line
        config, out = words.index("--config") + 1, words.index("--out") + 1
        words[config], words[out] = "configs/smoke.toml", str(tmp_path / "grid.png")
        run([*words, f"run.folder={smoke.parent}"])
        assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert set(targets) <= TARGETS and {"demo", "test", "train", "report"} <= set(targets)
    assert "everything is complete" in run(["make", "status", *here]).stdout
    run(["make", "dataset", "train", *here])
    assert {m: m.read_bytes() for m in smoke.glob("**/manifest.json")} == before  # a rerun makes nothing again


def test_the_readmes_configs_are_valid() -> None:
    assert blocks("toml")
    smoke = tomllib.loads((REPOSITORY / "configs" / "smoke.toml").read_text())
    for block in blocks("toml"):
        tables = tomllib.loads(block)
        parse_config(tables if "run" in tables else smoke | tables, "README")


def test_the_readme_names_files_that_exist() -> None:
    assert "@@" not in README
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (REPOSITORY / picture).is_file(), picture
    for path in re.findall(r"`((?:data|embed|training|eval|humaneval|dashboards|docs|configs)/[\w./-]+)`", README):
        assert (REPOSITORY / path).exists(), path
