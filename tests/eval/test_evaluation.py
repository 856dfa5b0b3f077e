"""The whole room on a tiny run: a faithful fake beats one that ignores its captions, and the report shows every number."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import eval.protocols.run as evaluation
import eval.report.build as report
from data.pipeline.artifacts import publish_json
from data.pipeline.errors import UserError
from eval.extract.clip import ClipExtractor
from eval.extract.stage import features_of
from eval.generate import jobs, make_samples
from eval.prompts import choose_prompts, make_prompts
from eval.protocols.run import Evaluation, compute_metrics, split_real
from eval.real_images import RealImages
from eval.settings import EvalSettings
from eval.systems import system_inputs
from eval.table import METRICS_SCHEMA, Row, publish_rows, read_rows
from tests.eval.tiny_run import HOSTILE, FakeClip, FakeSystem, make_run, train

CLIP = "clip:" + FakeClip.identity[:8]


def draw_all(run):
    settings = run.config[EvalSettings]
    real = RealImages(run.dataset, run.view("base"))
    make_prompts(run, real, "captions", settings.captions)
    make_prompts(run, real, "grids", settings.grids)
    for system in (FakeSystem("unclip", faithful=True), FakeSystem("glide", faithful=False)):
        system.inputs = system_inputs(run, system.name, FakeClip.identity)
        for job in jobs(system, settings, run.seed):
            make_samples(run, job)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with samples and metrics; its CLIP is a fake."""
    run = make_run(tmp_path_factory.mktemp("runs"), label="Smoke: numbers mean nothing.")
    draw_all(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "load_clip", lambda run: FakeClip())
        compute_metrics(run)
        yield run


@pytest.fixture(scope="module")
def rows(run) -> dict[tuple[str, str, float | None], Row]:
    return {(r.metric, r.system, r.guidance): r for r in read_rows(run.folder / "eval" / "metrics.parquet")[0]}


def test_table_has_the_documented_columns_and_whole_rows(run, rows):
    table = pq.read_table(run.folder / "eval" / "metrics.parquet")
    assert table.schema.remove_metadata().equals(METRICS_SCHEMA)
    for row in rows.values():
        assert row.lo <= row.value <= row.hi or row.system == "unclip - glide", row
        assert row.n >= 1 and row.images >= row.n and row.seed == 3
        assert row.direction in ("higher", "lower")
    hashes = {r.settings_hash for r in rows.values() if r.system in ("unclip", "glide")}
    assert len(hashes) == 4 and all(re.fullmatch("[0-9a-f]{12}", h) for h in hashes)


@pytest.mark.parametrize(
    "metric",
    [
        f"fd[{CLIP}]",
        "fd[attributes]",
        f"clip_score[{CLIP}]",
        f"clip_score_hessel[{CLIP}]",
        f"diversity[{CLIP}]",
        "attribute_accuracy[colour]",
    ],
)
def test_every_metric_covers_both_systems_all_scales_and_their_difference(rows, metric):
    for system in ("unclip", "glide", "unclip - glide"):
        assert {(metric, system, scale) in rows for scale in (1.0, 2.0)} == {True}


def test_real_images_and_chance_stand_beside(rows):
    for metric in ("attribute_accuracy[colour]", "attribute_accuracy[shape]", f"r_precision[{CLIP}]"):
        assert rows[metric, "chance", None].value < 1
        assert (metric, "real", None) in rows
    assert rows["attribute_accuracy[colour+background]", "chance", None].value == pytest.approx(1 / 28)
    assert rows["attribute_accuracy[colour]", "real", None].n == 40
    assert rows["classifier_accuracy[shape]", "real", None].n < 60


def test_the_faithful_system_wins_where_captions_count(rows):
    # The tiny classifier is weak in colour but knows grounds.
    metric = "attribute_accuracy[background]"
    paired = rows[metric, "unclip - glide", 1.0]
    a, b = rows[metric, "unclip", 1.0], rows[metric, "glide", 1.0]
    assert paired.value == pytest.approx(a.value - b.value)
    assert paired.lo > 0.2
    assert b.lo < rows[metric, "chance", None].value + 0.15


def test_warnings_name_the_bias_and_the_shared_clip(rows):
    fd = rows[f"fd[{CLIP}]", "unclip", 1.0]
    assert any("biased upward: 88 images against" in w for w in fd.warnings)
    assert any("conditions unCLIP" in w for w in fd.warnings)
    assert not any("conditions unCLIP" in w for w in rows["fd[attributes]", "unclip", 1.0].warnings)


def test_numbers_do_not_change_and_are_not_computed_twice(run, monkeypatch):
    path = run.folder / "eval" / "metrics.parquet"
    before = path.read_bytes()
    monkeypatch.setattr(evaluation, "all_rows", lambda _: pytest.fail("computed again"))
    compute_metrics(run)
    monkeypatch.undo()
    monkeypatch.setattr(evaluation, "load_clip", lambda run: FakeClip())
    path.unlink()
    compute_metrics(run)
    assert path.read_bytes() == before


def test_features_are_cached_by_content(run):
    real = RealImages(run.dataset, run.view("base"))
    images = real.image_set("some", real.train(0, "x")[:5], 16)
    first = features_of(run, images, ClipExtractor(FakeClip()))
    unreadable = replace(images, load=lambda: pytest.fail("extracted again"))
    np.testing.assert_array_equal(first, features_of(run, unreadable, ClipExtractor(FakeClip())))
    reordered = replace(unreadable, ids=images.ids[::-1])
    np.testing.assert_array_equal(first[::-1], features_of(run, reordered, ClipExtractor(FakeClip())))


def test_reference_and_real_row_share_nothing_and_have_the_prompts_shares(run):
    real = RealImages(run.dataset, run.view("base"))
    prompts = choose_prompts(real, "captions", run.config[EvalSettings].captions, run.seed)
    reference, extra = split_real(real, prompts, 100, 88, run.seed)
    own = {p.caption_key for p in prompts}
    assert not set(reference) & set(extra) and not own & {*reference, *extra}
    assert len(reference) == 100 and len(extra) == 44
    assert np.mean([real.objects(k) == 2 for k in reference]) == pytest.approx(4 / 44, abs=0.02)


def test_missing_samples_name_the_command(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(UserError, match="python -m eval sample"):
        Evaluation(run)
    with pytest.raises(UserError, match="python -m eval metrics"):
        report.write_report(run)


def test_one_sample_a_caption_and_samples_of_replaced_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "load_clip", lambda run: FakeClip())
    few = {"captions": 8, "samples": 1}
    run = make_run(tmp_path, captions=few, grids=few, guidance=[1.0], grid_guidance=1.0, bootstrap_draws=100)
    draw_all(run)
    compute_metrics(run)
    report.write_report(run)
    train(run, "glide", "2")
    with pytest.raises(
        UserError, match=r"glide.* were drawn with models that have been replaced since; run `python -m eval sample`"
    ):
        compute_metrics(run)
    draw_all(run)
    with pytest.raises(UserError, match="run `python -m eval metrics`"):
        report.write_report(run)


# --- the report ---


@pytest.fixture(scope="module")
def written(run):
    publish_json(
        run.folder / "humaneval" / "results.json",
        {
            "simulated": True, "study": {"hash": "abc"},
            "questions": [{"question": "photorealism", "system_a": "unclip", "system_b": HOSTILE, "n": 60, "win_rate": 0.55, "simulated": True, "shares": {"win": 0.5, "tie": 0.25}, "left_share": None, "lo": None, "hi": None}, {"question": "diversity", "simulated": False, "win_rate": 0.25}],
        },
    )  # fmt: skip
    as_json, as_html = report.write_report(run)
    return json.loads(as_json.read_text()), as_html.read_text()


def test_report_is_self_contained(written):
    html = written[1]
    for attribute in re.findall(r"""(?:src|href|action|srcset|data)\s*=\s*["']([^"']*)""", html):
        assert attribute.startswith("data:image/"), attribute[:80]
    for forbidden in ("http://", "https://", "<script", "<link", "@import", "url(", "<iframe"):
        assert forbidden not in html


def test_report_escapes_captions_and_raters_input(run, monkeypatch, written):
    assert "&lt;script&gt;alert" in written[1]
    shown = report.pictures(run)
    shown["grids"][0]["caption"] = shown["side_by_side"][0]["caption"] = HOSTILE
    rows = read_rows(run.folder / "eval" / "metrics.parquet")[0]
    html = report.render(
        written[0] | {"title": HOSTILE, "labels": [HOSTILE]},
        rows,
        shown,
        {"curves": [], "funnel": "data:image/png;base64,"},
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 5


def test_json_holds_every_number_that_the_page_shows(written):
    data, html = written
    shown = {report.number(m[k]) for m in data["metrics"] for k in ("value", "lo", "hi")}
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
    assert data["artifacts"].keys() >= {"dataset", "views/base", "eval/attributes", "prompts/captions"}
    assert data["funnel"][0]["step"] == "planned"
    assert len(data["artifacts"]["dataset"]) == 64


def test_rows_survive_their_file(tmp_path):
    row = Row("fd[x]", "unclip", 1.5, 1.0, 2.0, 10, 20, 0, "abc", 2.0, ("small n",))
    publish_rows(tmp_path / "m.parquet", [row], {"a": 1})
    assert read_rows(tmp_path / "m.parquet") == ([row], {"a": 1})


def test_numbers_are_written_for_people():
    assert [report.number(v) for v in (0.12345, 123.456, 1234, float("nan"), "a", True)] == [
        "0.123",
        "123.5",
        "1,234",
        "-",
        "a",
        "True",
    ]
