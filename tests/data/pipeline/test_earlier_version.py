"""Artifacts of the version before (their plans and receipts, kept as small files) are refused in words, or made again."""

import shutil
from pathlib import Path

import pytest

from data.pipeline.artifacts import Artifact
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import InProcess
from data.pipeline.lineage import Lineage, graph
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.reports.status import run_status
from tests.conftest import make_config

OLD = Path(__file__).parents[1] / "earlier_version"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder with what the version before left behind."""
    run = Run(make_config(tmp_path))
    shutil.copytree(OLD, run.folder, ignore=shutil.ignore_patterns("config.toml"))
    return run


def write_nothing(spec: PartSpec, attempt: Path) -> dict[str, int]:
    (attempt / f"{spec.name}.txt").write_text("new")
    return {}


def test_inputs_of_another_form_are_refused_in_words(run: Run) -> None:
    with pytest.raises(UserError, match=r"views/base was made by an earlier version of the toolkit") as error:
        run.view("base").inputs()
    assert error.value.code == Code.OTHER_VERSION
    lineage = Lineage(run)
    assert "earlier version" in (lineage.why_stale("views/base") or "")
    with pytest.raises(UserError, match="views/base is stale") as refused:
        lineage.require("views/base")
    assert refused.value.code == Code.STALE


def test_status_and_graph_say_so_and_do_not_fall_over(run: Run) -> None:
    for artifact in ("dataset", "views/base", "models/prior"):  # their files stand, as far as status looks
        for receipt in Artifact(run.folder / artifact).receipts():
            for relative, facts in receipt.files.items():
                path = run.folder / artifact / relative
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"\0" * facts["bytes"])
    states = {status.name: status for status in run_status(run)}
    for name in ("views/base", "models/prior"):
        assert states[name].state == "stale" and "earlier version" in states[name].detail, states[name]
    assert {node.name: node.made_from for node in graph(run)} == {"dataset": (), "views/base": (), "models/prior": ()}


def test_a_precious_stage_keeps_them_and_a_cheap_one_makes_them_again(run: Run) -> None:
    artifact = run.model("prior")
    plan = artifact.plan_json()
    assert plan is not None
    parts = [PartSpec("model", (Input("views/train", "of today"),))]
    before = sorted(p.relative_to(artifact.folder) for p in artifact.folder.rglob("*") if p.is_file())
    stage = Stage(plan["stage"], 2, artifact.folder, plan["settings"], parts, write_nothing, precious=True)
    with pytest.raises(UserError, match="or by an older version of this stage") as error:
        run_stage(stage, InProcess())
    assert error.value.code == Code.STALE
    assert (
        sorted(p.relative_to(artifact.folder) for p in artifact.folder.rglob("*") if p.is_file() and p.name != ".lock")
        == before
    )
    view = run.view("base")
    settings = (view.plan_json() or {})["settings"]
    again = run_stage(Stage("view-base", 4, view.folder, settings, [PartSpec("00000")], write_nothing), InProcess())
    assert again.verify() == [] and again.inputs() == {"00000": []}
