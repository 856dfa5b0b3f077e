import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.pipeline.cli import front_door
from data.pipeline.errors import Code, UserError
from data.pipeline.run import Run
from humaneval.__main__ import COMMANDS
from humaneval.rating.simulate import image_contrast, rater_noise, simulate
from humaneval.rating.store import Store
from humaneval.results import read_results, results_table, summarise, tidy_ratings
from humaneval.settings import KINDS, SimulatedRaters
from humaneval.study.study import Study
from tests.humaneval.fake_run import draw_again, fake_config, fake_run, png


def prefer(store: Store, study: Study, system: str, raters: int) -> None:
    """People who know what they want."""
    arm = "ab"[study.systems.index(system)]
    for _ in range(raters):
        rater = store.join()
        while lease := store.next_lease(rater):
            assert store.answer(lease.lease, "left" if study.arm(lease.left_image) == arm else "right")


def test_preference_for_a_system_comes_out_whatever_side_it_stood_on(store: Store, study: Study) -> None:
    prefer(store, study, "glide", raters=4)
    for row in summarise(study, store.ratings())["questions"]:
        assert (row["wins"], row["ties"], row["losses"], row["win_rate"]) == (0, 0, 12, 0.0)
        assert (row["system_a"], row["system_b"], row["n"], row["raters"]) == ("unclip", "glide", 12, 4)
        assert 0.3 <= row["left_share"] <= 0.7


def test_people_and_simulated_raters_never_share_a_row(store: Store, study: Study) -> None:
    simulate(study, store, SimulatedRaters(raters=2), seed=0)
    only_simulated = summarise(study, store.ratings())
    assert only_simulated["simulated"] is True and "SIMULATED" in only_simulated["note"]
    assert all(row["simulated"] for row in only_simulated["questions"])
    prefer(store, study, "unclip", raters=3)
    both = summarise(study, store.ratings())
    people = [row for row in both["questions"] if not row["simulated"]]
    assert both["simulated"] is True and len(both["questions"]) == 6
    assert [row["n"] for row in people] == [9, 9, 9] and all(row["win_rate"] == 1.0 for row in people)
    assert [row for row in both["questions"] if row["simulated"]] == only_simulated["questions"]
    assert [row["raters"] for row in results_table(both)] == ["3 people"] * 3 + ["2 simulated"] * 3


def test_only_people_is_not_called_simulated(store: Store, study: Study) -> None:
    prefer(store, study, "unclip", raters=1)
    summary = summarise(study, store.ratings())
    assert summary["simulated"] is False and summary["note"] is None
    assert [row["lo"] for row in summary["questions"]] == [None] * 3, "one rater: how raters differ cannot be known"
    assert "needs 2 raters" in results_table(summary)[0]["95% two-way clustered"]


def test_published_ratings_do_not_hold_the_token_that_lets_one_go_on_rating(store: Store, study: Study) -> None:
    prefer(store, study, "unclip", raters=1)
    token = store.ratings()[0].rater
    assert token not in json.dumps(tidy_ratings(study, store.ratings()))


def test_no_ratings_is_one_clear_line(store: Store, study: Study) -> None:
    with pytest.raises(UserError, match="make rate") as missing:
        summarise(study, [])
    assert missing.value.code == Code.MISSING


def test_simulation_is_deterministic_and_resumable(study: Study, store: Store, tmp_path: Path) -> None:
    settings = SimulatedRaters(raters=3)
    assert simulate(study, store, settings, seed=5) == 27
    assert simulate(study, store, settings, seed=5) == 0
    first = [(r.rater, r.question, r.left_image, r.answer) for r in store.ratings()]
    assert all(rater.startswith("simulated-") for rater, *_ in first)
    assert {answer for *_, answer in first} >= {"left", "right"}
    from humaneval.rating.database import open_database

    other = Store(open_database(f"sqlite:///{tmp_path}/other.sqlite"), study, 3, 60)
    simulate(study, other, settings, seed=5)
    assert [(r.rater, r.question, r.left_image, r.answer) for r in other.ratings()] == first


def test_a_noiseless_simulated_rater_prefers_contrast(study: Study, store: Store) -> None:
    simulate(study, store, SimulatedRaters(raters=2, noise=0, indecision=0), seed=0)
    for rating in store.ratings():
        better = max(("left", "right"), key=lambda side: image_contrast(study.image(getattr(rating, f"{side}_image"))))
        assert rating.answer == better
    assert 0.2 < image_contrast(png(0, 16)) < 0.4, "uniform noise has a standard deviation of 0.289"
    assert rater_noise(0, "r", "q") == rater_noise(0, "r", "q") != rater_noise(0, "r", "q2")


def test_the_front_door_builds_simulates_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake_run(tmp_path)
    toml = tmp_path / "fake.toml"
    toml.write_bytes((run.folder / "config.toml").read_bytes())

    def call(*argv: str) -> int:
        return front_door("humaneval", "", COMMANDS, [argv[0], "--config", str(toml), *argv[1:]])

    assert call("results") == 2 and "humaneval build" in capsys.readouterr().err
    assert [call("build"), call("build")] == [0, 0]
    assert call("results") == 0 and "make rate" in capsys.readouterr().out
    assert [call("simulate"), call("results")] == [0, 0]
    out = capsys.readouterr().out
    assert "SIMULATED" in out and "photorealism" in out
    results = read_results(Run(fake_config(tmp_path)))
    assert results["simulated"] is True and sum(row["n"] for row in results["questions"]) == 4 * 9
    table = pq.read_table(run.folder / "humaneval/ratings.parquet").to_pylist()
    assert len(table) == 36 and all(row["simulated"] for row in table)
    before = (run.folder / "humaneval/results.json").read_bytes()
    assert [call("simulate"), call("results")] == [0, 0]
    assert (run.folder / "humaneval/results.json").read_bytes() == before
    assert call("build", "humaneval.questions.photorealism=2") == 2
    assert "belongs to another config" in (error := capsys.readouterr().err) and f"[{Code.OTHER_CONFIG}]" in error
    none = [f"humaneval.questions.{kind}=0" for kind in KINDS]
    assert [call(command, *none) for command in ("build", "simulate", "results")] == [0, 0, 0]
    assert capsys.readouterr().out.count("no study") == 3
    assert call("results", "humaneval.lease_minutes=5.0") == 0


def call(run: Run, command: str, *overrides: str) -> int:
    """The front door on a run's own config."""
    toml = run.folder / "config.toml"
    return front_door("humaneval", "", COMMANDS, [command, "--config", str(toml), *overrides])


def test_results_of_another_study_are_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake_run(tmp_path)
    assert [call(run, command) for command in ("build", "simulate", "results")] == [0, 0, 0]
    old = read_results(run)["study"]["hash"]
    other = ("humaneval.questions.photorealism=2",)
    shutil.rmtree(run.folder / "humaneval/study")
    assert call(run, "build", *other) == 0
    capsys.readouterr()
    assert call(run, "results", *other) == 0
    out = capsys.readouterr().out
    assert "nobody has rated" in out and f"results-{old[:12]}.json" in out
    for name in (f"results-{old[:12]}.json", f"ratings-{old[:12]}.parquet"):
        assert (run.folder / "humaneval" / name).exists()
    with pytest.raises(UserError, match="does not exist"):
        read_results(run)


def test_a_stale_study_is_refused_unless_people_have_rated_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path)
    assert [call(run, "build"), call(run, "simulate")] == [0, 0]
    study = Study.of(run)
    draw_again(run)
    capsys.readouterr()
    for command in ("simulate", "results"):
        assert call(run, command) == 2
        error = capsys.readouterr().err
        assert f"[{Code.STALE}]" in error and "humaneval build" in error
    store = Store.of(run, run.config, study)
    lease = store.next_lease(store.join())
    assert lease and store.answer(lease.lease, "left")
    assert call(run, "results") == 0
    assert f"people rated study {study.hash[:12]}, which is stale" in capsys.readouterr().out
    assert call(run, "simulate") == 2
