"""The whole room on a tiny run: a faithful fake beats one that ignores its captions, and the table holds every number."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

import eval.protocols.run as evaluation
from data.pipeline.config import parse_config
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import InProcess
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input
from eval.extract.stage import features_stage, read_features
from eval.metrics.families import FAMILIES
from eval.prompts import choose_prompts
from eval.protocols.part import read_measured
from eval.protocols.run import Evaluation, compute_metrics, extract_all
from eval.protocols.sets import split_real
from eval.real_images import RealImages, RealSet
from eval.report.build import write_report
from eval.settings import EvalSettings
from eval.stages import STAGES
from eval.table import METRICS_SCHEMA, Row, read_rows, write_rows
from tests.eval.tiny_run import FakeClip, draw_all, fake_clip, make_run, train

CLIP = "clip:" + FakeClip.identity[:8]
TABLE = "eval/metrics/metrics.parquet"


@pytest.fixture(scope="module", autouse=True)
def fake_clips():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation.ClipExtractor, "open", fake_clip)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with generated images and metrics; its CLIP is a fake."""
    run = make_run(tmp_path_factory.mktemp("runs"), label="Smoke: numbers mean nothing.")
    draw_all(run)
    compute_metrics(run, InProcess())
    return run


@pytest.fixture(scope="module")
def rows(run) -> dict[tuple[str, str, float | None], Row]:
    return {(r.metric.name, r.system, r.guidance): r for r in read_rows(run.folder / TABLE)[0]}


def test_table_has_the_documented_columns_and_whole_rows(run, rows):
    table = pq.read_table(run.folder / TABLE)
    assert table.schema.remove_metadata().equals(METRICS_SCHEMA)
    for row in rows.values():
        assert row.lo <= row.value <= row.hi or row.kind == "difference", row
        assert row.n >= 1 and row.images >= row.n and row.seed == 3
        assert row.metric.direction in ("higher", "lower")
    hashes = {r.settings_hash for r in rows.values() if r.kind == "system"}
    assert len(hashes) == 4 and all(re.fullmatch("[0-9a-f]{12}", h or "") for h in hashes)


def test_metrics_say_by_fields_what_they_are(rows):
    accuracy = rows["attribute_accuracy[colour]", "unclip", 1.0].metric
    assert (accuracy.family, accuracy.space, accuracy.what, accuracy.scope) == (
        "attribute_accuracy", "attributes", "colour", "one object",
    )  # fmt: skip
    distance = rows[f"fd[{CLIP}]", "unclip", 1.0].metric
    assert (distance.family, distance.space, distance.what, distance.direction) == ("fd", CLIP, None, "lower")
    assert FAMILIES["fid"].metric("inception").name == "fid"
    assert FAMILIES["attribute_accuracy"].metric("attributes", "colour", "two objects").name == (
        "attribute_accuracy[colour, two objects]"
    )


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
def test_every_metric_covers_every_system_all_scales_and_their_difference(rows, metric):
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
    assert any("the run's own CLIP" in w for w in fd.warnings)
    assert not any("the run's own CLIP" in w for w in rows[f"fd[{CLIP}]", "real", None].warnings)
    assert not any("the run's own CLIP" in w for w in rows["fd[attributes]", "unclip", 1.0].warnings)


def test_numbers_do_not_change_and_are_not_computed_twice(run, monkeypatch):
    metrics = run.artifact("eval/metrics")
    before, table = metrics.digest(), (run.folder / TABLE).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "measure_part", lambda spec, attempt: pytest.fail("computed again"))
        compute_metrics(run, InProcess())
    assert metrics.digest() == before
    (run.folder / TABLE).unlink()
    compute_metrics(run, InProcess())
    assert (run.folder / TABLE).read_bytes() == table and metrics.digest() == before and metrics.verify() == []


def test_features_and_metrics_are_artifacts_that_the_stage_table_counts(run):
    for row in STAGES:
        if row.name not in ("eval/report", "generations/*/*"):
            assert len(row.artifacts(run)) == row.count(run.config), row.name
    lineage = Lineage(run)
    for row in STAGES:
        for artifact in row.artifacts(run):
            assert lineage.why_stale(artifact.folder.relative_to(run.folder).as_posix()) is None


def test_every_part_travels(run):
    whole = Evaluation.of(run, InProcess())
    for stage in (*whole.features_stages(), whole.metrics_stage()):
        for part in stage.parts:
            assert pickle.loads(pickle.dumps(part)) == part  # noqa: S301


def test_features_are_made_once_and_again_when_the_images_change(run):
    real = RealImages(run.dataset, run.view("base"))
    images = RealSet(
        "some", run.dataset.folder, tuple(real.train(0, "x")[:5]), 16, (Input("dataset", run.dataset.digest()),)
    )
    clip = fake_clip(run)
    artifact = run_stage(features_stage(run, images, clip), InProcess())
    first, receipt = read_features(artifact.folder), artifact.folder / "parts" / "00000.json"
    assert first.ids == list(images.keys) and first.arrays["embedding"].shape == (5, 12)
    made = receipt.stat().st_mtime_ns
    run_stage(features_stage(run, images, clip), InProcess())
    assert receipt.stat().st_mtime_ns == made
    smaller = replace(images, side=8)
    run_stage(features_stage(run, smaller, clip), InProcess())
    assert receipt.stat().st_mtime_ns != made, "the side decides, too"
    other = replace(images, keys=images.keys[::-1])
    second = read_features(run_stage(features_stage(run, other, clip), InProcess()).folder)
    np.testing.assert_array_equal(second.arrays["embedding"], first.arrays["embedding"][::-1])


def test_reference_and_real_row_share_nothing_and_have_the_prompts_shares(run):
    real = RealImages(run.dataset, run.view("base"))
    prompts = choose_prompts(real, "captions", run.config[EvalSettings].captions, run.seed)
    reference, extra = split_real(real, prompts, 100, 88, run.seed)
    own = {p.caption_key for p in prompts}
    assert not set(reference) & set(extra) and not own & {*reference, *extra}
    assert len(reference) == 100 and len(extra) == 44
    assert np.mean([real.objects(k) == 2 for k in reference]) == pytest.approx(4 / 44, abs=0.02)


def test_what_is_missing_names_the_command(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(UserError, match="python -m eval generate") as error:
        compute_metrics(run, InProcess())
    assert error.value.code == Code.MISSING
    draw_all(run)
    with pytest.raises(UserError, match="python -m eval metrics") as error:
        write_report(run)
    assert error.value.code == Code.MISSING


FEW = {"captions": 8, "images": 1}


def test_one_image_a_caption_and_images_of_replaced_weights(tmp_path):
    run = make_run(tmp_path, captions=FEW, grids=FEW, guidance=[1.0], grid_guidance=1.0, bootstrap_draws=100)
    draw_all(run)
    compute_metrics(run, InProcess())
    write_report(run)
    train(run, "glide", 2)
    for make in (lambda: compute_metrics(run, InProcess()), lambda: write_report(run)):
        with pytest.raises(UserError, match="models/glide has changed since") as error:
            make()
        assert error.value.code == Code.STALE
    draw_all(run)
    with pytest.raises(UserError, match="run `python -m eval metrics`") as error:
        write_report(run)
    assert error.value.code == Code.STALE
    compute_metrics(run, InProcess())
    write_report(run)


@pytest.mark.parametrize("systems", [("only",), ("a", "b", "c")])
def test_any_number_of_systems(tmp_path, systems, monkeypatch):
    monkeypatch.setattr("tests.eval.tiny_run.MODELS", dict.fromkeys(systems, ("glide",)))
    rows = {name: {"decoder": "glide"} for name in systems}
    run = make_run(tmp_path, rows, captions=FEW, grids=FEW, guidance=[1.0], grid_guidance=1.0, bootstrap_draws=100)
    draw_all(run, systems)
    compute_metrics(run, InProcess())
    found = read_rows(run.folder / TABLE)[0]
    assert {r.system for r in found if r.kind == "system"} == set(systems)
    pairs = {"a - b", "a - c", "b - c"} if len(systems) == 3 else set()
    assert {r.system for r in found if r.kind == "difference"} == pairs
    html = write_report(run)[1].read_text()
    assert ("<h2>Differences</h2>" in html) == bool(pairs)
    assert all(f'class="system-{i}"' in html for i in range(len(systems)))


def retold(run: Run, **tables: dict) -> Run:
    """The same folder under a config whose tables are others."""
    return Run.open(parse_config(run.config.to_dict() | tables, "retold"))


def test_numbers_of_other_systems_than_the_config_names_are_stale(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.eval.tiny_run.MODELS", dict.fromkeys("abc", ("glide",)))
    run = make_run(
        tmp_path, {"a": {"decoder": "glide"}, "b": {"decoder": "glide"}}, captions=FEW, grids=FEW, guidance=[1.0],
        grid_guidance=1.0, bootstrap_draws=100,
    )  # fmt: skip
    draw_all(run, "ab")
    compute_metrics(run, InProcess())
    write_report(run)
    for rows in ("a", "ba", "abc"):
        other = retold(run, systems={name: {"decoder": "glide"} for name in rows})
        draw_all(other, rows)
        for name in ("eval/metrics", "eval/report"):
            assert "it measures a@1, b@1, the config asks for" in (Lineage(other).why_stale(name) or ""), (rows, name)
        with pytest.raises(UserError, match="python -m eval metrics") as error:
            write_report(other)
        assert error.value.code == Code.STALE
    compute_metrics(other, InProcess())
    write_report(other)
    assert Lineage(other).why_stale("eval/report") is None and Lineage(run).why_stale("eval/metrics") is not None
    models = retold(run, systems={"a": {"decoder": "decoder"}, "b": {"decoder": "glide"}, "c": {"decoder": "glide"}})
    with pytest.raises(UserError, match=r"drawn by glide, systems.a names decoder.*python -m eval generate") as error:
        compute_metrics(models, InProcess())
    assert error.value.code == Code.STALE


def test_a_family_that_is_new_is_measured_in_a_run_that_has_metrics(tmp_path, monkeypatch):
    run = make_run(tmp_path, captions=FEW, grids=FEW, guidance=[1.0], grid_guidance=1.0, bootstrap_draws=100)
    draw_all(run)
    compute_metrics(run, InProcess())
    features = {a.folder: a.digest() for a in extract_all(run, InProcess())}
    with monkeypatch.context() as patch:
        patch.setitem(FAMILIES, "more", replace(FAMILIES["clip_score"], name="more"))
        patch.setattr(evaluation, "FOLLOWING", (*evaluation.FOLLOWING, "more"))
        assert "families.py" in (Lineage(run).why_stale("eval/metrics") or "")
        compute_metrics(run, InProcess())
        assert "more" in {row.metric.family for row in read_rows(run.folder / TABLE)[0]}
        assert Lineage(run).why_stale("eval/metrics") is None
    for path in (run.folder / TABLE, run.folder / "eval/metrics/unclip@1.parquet"):
        with pytest.raises(UserError, match="the family 'more', which this version .*python -m eval metrics") as error:
            (read_rows if path.name == "metrics.parquet" else read_measured)(path)
        assert error.value.code == Code.OTHER_VERSION
    compute_metrics(run, InProcess())
    assert "more" not in {row.metric.family for row in read_rows(run.folder / TABLE)[0]}
    assert features == {a.folder: a.digest() for a in extract_all(run, InProcess())}, "from the features that stood"


def test_features_alone(tmp_path):
    run = make_run(tmp_path, captions=FEW, grids=FEW, guidance=[1.0], grid_guidance=1.0)
    draw_all(run)
    made = extract_all(run, InProcess())
    row = next(row for row in STAGES if row.name == "eval/features/*/*")
    assert len(made) == row.count(run.config)


def test_rows_survive_their_file(tmp_path):
    metric = FAMILIES["fd"].metric("x")
    row = Row(metric, "system", "unclip", 1.5, 1.0, 2.0, 10, 20, 0, "abc", 2.0, ("small n",))
    write_rows(tmp_path / "m.parquet", [row], {"a": 1})
    assert read_rows(tmp_path / "m.parquet") == ([row], {"a": 1})
