"""The report: one file that needs no network, shows every number, and trusts no text."""

import hashlib
import json
import re

import pytest

import eval.protocols.run as evaluation
from data.pipeline.artifacts import publish_bytes, publish_json
from data.pipeline.config import parse_config
from data.pipeline.executors import InProcess
from data.pipeline.lineage import Lineage, Node
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from eval.protocols.run import compute_metrics
from eval.report.build import write_report
from eval.report.figures import PALETTE
from eval.report.lineage import boxes, draw_lineage, without_implied
from eval.report.page import number, render
from eval.report.pictures import pictures
from eval.table import read_rows
from tests.eval.tiny_run import HOSTILE, draw_all, fake_clip, make_run

RESULTS = {
    "simulated": True, "study": {"hash": hashlib.sha256(b"{}").hexdigest()},
    "questions": [{"question": "photorealism", "system_a": "unclip", "system_b": HOSTILE, "n": 60, "win_rate": 0.55, "simulated": True, "shares": {"win": 0.5, "tie": 0.25}, "left_share": None, "lo": None, "hi": None}, {"question": "diversity", "simulated": False, "win_rate": 0.25}],
}  # fmt: skip
COST = {
    "stages": [{"name": HOSTILE, "wall_s": 12.5, "cpu_s": 20.25, "peak_rss_mb": 312.0}, {"name": "eval metrics"}],
    "wall_s": 900.0, "cpu_s": 1500.0, "peak_rss_mb": 2048.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation.ClipExtractor, "open", fake_clip)
        run = make_run(tmp_path_factory.mktemp("runs"), label="Smoke: numbers mean nothing.")
        draw_all(run)
        compute_metrics(run, InProcess())
        return run


@pytest.fixture(scope="module")
def written(run):
    publish_bytes(run.folder / "humaneval" / "study" / "study.json", b"{}")
    publish_json(run.folder / "humaneval" / "results.json", RESULTS)
    publish_json(run.folder / "logs" / "cost.json", COST)
    as_json, as_html = write_report(run)
    return json.loads(as_json.read_text()), as_html.read_text()


def test_report_is_self_contained(written):
    html = written[1]
    for attribute in re.findall(r"""(?:src|href|action|srcset|data)\s*=\s*["']([^"']*)""", html):
        assert attribute.startswith("data:image/"), attribute[:80]
    for forbidden in ("http://", "https://", "<script", "<link", "@import", "url(", "<iframe"):
        assert forbidden not in html


def test_report_escapes_captions_and_raters_input(run, written):
    assert "&lt;script&gt;alert" in written[1]
    shown = pictures(run)
    shown["grids"][0]["caption"] = shown["side_by_side"][0]["caption"] = HOSTILE
    rows = read_rows(run.folder / "eval/metrics/metrics.parquet")[0]
    figures = {"curves": [], "funnel": "data:image/png;base64,", "lineage": "data:image/png;base64,"}
    html = render(written[0] | {"title": HOSTILE, "labels": [HOSTILE]}, rows, shown, figures, PALETTE)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 6


def test_json_holds_every_number_that_the_page_shows(written):
    data, html = written
    shown = {number(m[k]) for m in data["metrics"] for k in ("value", "lo", "hi")}
    for cell in re.findall(r"<td>(-?\d+\.\d+)<small>(-?\d+\.\d+) – (-?\d+\.\d+)</small>", html):
        assert set(cell) <= shown
    assert len(re.findall(r"<small>-?\d+\.\d+ – ", html)) > 40


def test_labels_provenance_and_funnel_are_there(written):
    data, html = written
    assert "Smoke: numbers mean nothing." in html
    assert "Synthetic data" in html
    assert "some rows of simulated raters" in html and "no person was asked" in html
    assert "55.0%" in html and "25.0%" in html and "<td>simulated</td>" in html and "<td>no</td>" in html
    assert "left share" not in html and "normal lo" in html
    assert data["artifacts"].keys() >= {"dataset", "views/base", "eval/attributes", "eval/metrics", "prompts/captions"}
    assert data["funnel"][0]["step"] == "planned"
    assert len(data["artifacts"]["dataset"]) == 64
    assert "unclip - glide" in html and "Heusel" not in html  # Inception was not asked for
    assert all(m["citation"] for m in data["metrics"])


def test_cost_is_a_table_with_its_total(written):
    html = written[1]
    assert "What it cost" in html
    assert re.search(r"<td>12\.5</td><td>20\.2</td><td>312\.0</td>", html)
    assert "<th>900.0</th><th>1500.0</th><th>2048.0</th>" in html


def test_lineage_is_drawn_and_listed(run, written):
    data, html = written
    nodes = {node["name"]: node for node in data["lineage"]}
    assert "eval/features/clip/reference" in nodes["eval/metrics"]["made_from"]
    assert nodes["models/glide"]["made_from"] == ["views/train"]
    assert 'alt="which artifact of the run was made from which"' in html
    for name, node in nodes.items():
        assert f"<td>{name}</td><td><code>{node['digest'][:12]}</code>" in html


def test_a_report_stands_until_something_that_it_shows_has_changed(run, written):
    artifact = run.artifact("eval/report")
    before = artifact.digest()
    write_report(run)
    assert artifact.digest() == before and artifact.verify() == []
    assert Lineage(run).why_stale("eval/report") is None
    publish_json(run.folder / "humaneval" / "results.json", RESULTS | {"confidence": 0.95})
    assert Lineage(run).why_stale("eval/report")
    write_report(run)
    assert artifact.digest() != before and Lineage(run).why_stale("eval/report") is None


def test_human_results_of_another_study_are_left_out_and_said_to_be(run, written):
    publish_bytes(run.folder / "humaneval" / "study" / "study.json", b"another")
    assert "results of the human evaluation" in (Lineage(run).why_stale("eval/report") or "")
    as_json, as_html = write_report(run)
    data, html = json.loads(as_json.read_text()), as_html.read_text()
    assert data["human_evaluation"] is None and "of another study" in data["human_evaluation_note"]
    assert "results of the human evaluation are of another study" in html and "55.0%" not in html


def write_study(spec, attempt):
    (attempt / "study.json").write_bytes(b"{}")
    return {}


def test_human_results_of_a_stale_study_are_shown_with_a_note(run, written):
    part = PartSpec("00000", (Input("views/base", "00"),))
    run_stage(Stage("study", 1, run.folder / "humaneval" / "study", {}, [part], write_study), InProcess())
    html = write_report(run)[1].read_text()
    assert "its study is stale (views/base has changed since" in html and "55.0%" in html


def test_a_report_shows_todays_config(run, written):
    artifact = run.artifact("eval/report")
    before = artifact.digest()
    tables = run.config.to_dict()
    label = "Numbers of a test."
    other = Run.open(parse_config(tables | {"eval": tables["eval"] | {"label": label}}, "other label"))
    _, html = write_report(other)
    assert label in html.read_text() and artifact.digest() != before


def test_boxes_stand_below_what_they_are_made_from_and_families_are_one():
    nodes = [
        Node("dataset", "aa" * 32, "make dataset", None, ()),
        Node("models/prior", "bb" * 32, "make train", "dataset has changed since", ("dataset",)),
        Node("generations/a/x", "cc" * 32, "make eval", None, ("models/prior",)),
        Node("generations/b/x", None, "make eval", None, ("models/prior",)),
        Node("eval/metrics", "dd" * 32, "make eval", None, ("generations/a/x", "generations/b/x", "not/here")),
    ]
    found = {box.name: box for box in boxes(nodes)}
    assert {name: box.level for name, box in found.items()} == {
        "dataset": 0, "models/prior": 1, "generations/*/*": 2, "eval/metrics": 3,
    }  # fmt: skip
    assert found["generations/*/*"].count == 2 and found["generations/*/*"].state == "incomplete"
    assert found["models/prior"].state == "stale"
    assert found["eval/metrics"].made_from == ("generations/*/*",)
    texts = [text.get_text() for text in draw_lineage(nodes).axes[0].texts]
    assert {"dataset", "aa" * 6, "make dataset", "stale: make train", "generations/*/* (2)"} <= set(texts)


def test_arrows_that_follow_from_others_are_left_out():
    made_from = {"a": (), "b": ("a",), "c": ("a", "b"), "d": ("c", "a", "d"), "e": ("a",)}
    assert without_implied(made_from) == {"a": [], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["a"]}


def test_numbers_are_written_for_people():
    assert [number(v) for v in (0.12345, 123.456, 1234, float("nan"), "a", True)] == [
        "0.123",
        "123.5",
        "1,234",
        "-",
        "a",
        "True",
    ]
