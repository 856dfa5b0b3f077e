"""What changed after something was made from it is said, not overlooked."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.dataset.build import build_dataset
from data.pipeline.artifacts import Artifact
from data.pipeline.cli import Command, front_door
from data.pipeline.errors import StageFailed, UserError
from data.pipeline.executors import InProcess
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.reports.funnel import funnel_rows
from data.reports.status import run_status
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.upkeep.apply_removal import remove
from data.views.build import build_base_view, build_train_view
from data.views.removal import Entry
from tests.conftest import make_config

FOLDER = {"samples_per_shard": 3, "image": {"size": 16, "format": "png"}}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    from PIL import Image

    root = tmp_path / "photos"
    root.mkdir()
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (20, 20), colour).save(root / f"{i}.png")
    write_captions(root, ["a red wall", "a green wall", "a blue wall", "a white wall"])
    return root


def write_captions(root: Path, captions: list[str]) -> None:
    (root / "captions.csv").write_text("file,caption\n" + "".join(f"{i}.png,{c}\n" for i, c in enumerate(captions)))


def config(tmp_path: Path, photos: Path, **fetch: Any) -> Any:
    dataset = {"folder": {"path": str(photos)}, **FOLDER, "fetch": fetch}
    return make_config(tmp_path, dataset=dataset, views={"base": {"min_caption_words": 2}})


def build_view(run: Run) -> Artifact:
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    return build_base_view(run, InProcess())


def state(run: Run, name: str) -> str:
    return next(s.state for s in run_status(run) if s.name == name)


def test_new_captions_under_old_images_remake_the_views(tmp_path: Path, photos: Path) -> None:
    """The ledger knows how many captions an image has, not their words: the view must depend on the words too."""
    run = Run.open(config(tmp_path, photos))
    build_dataset(run, InProcess())
    build_view(run)
    build_train_view(run, InProcess())
    assert funnel_rows(run)[-1].step == "view train"
    write_captions(photos, ["a red wall", "wall", "a blue wall", "a white wall"])
    shutil.rmtree(run.dataset.folder)
    build_dataset(run, InProcess())
    assert (state(run, "views/base"), funnel_rows(run)[-1].step) == ("stale", "stored")
    assert build_view(run).manifest()["counts"]["dropped_caption_too_short_pairs"] == 1
    assert (state(run, "views/base"), state(run, "views/train")) == ("complete", "stale")
    assert funnel_rows(run)[-1].step == "view base"


def test_what_decides_what_is_stored_may_not_change_half_way(tmp_path: Path, photos: Path) -> None:
    build_dataset(Run.open(config(tmp_path, photos)), InProcess())
    build_dataset(Run.open(config(tmp_path, photos, threads=3, deadline=5.0)), InProcess())
    with pytest.raises(UserError, match=r"dataset.fetch.respect_robots_tag was True .* says False"):
        Run.open(config(tmp_path, photos, respect_robots_tag=False))


def test_a_plan_that_changes_under_a_worker_is_refused(tmp_path: Path, photos: Path) -> None:
    run = Run.open(config(tmp_path, photos))

    class ChangesThePlan(InProcess):
        def run(self, *args: Any) -> Iterator[Any]:
            import pyarrow.parquet as pq

            path = run.dataset.folder / "plan.parquet"
            table = pq.read_table(path)
            pq.write_table(table.set_column(2, "source_id", table["key"]), path)
            yield from super().run(*args)

    with pytest.raises(UserError, match=r"the plan in .* changed while its shards were made"):
        build_dataset(run, ChangesThePlan())


def test_parts_that_never_arrive_do_not_make_a_complete_artifact(tmp_path: Path) -> None:
    """Workers that see another folder under this path report success, and publish elsewhere."""

    class Elsewhere(InProcess):
        def run(self, name: str, function: Any, calls: Any, labels: Any) -> Iterator[Any]:
            for label in labels:
                yield label, {"seconds": 0.0}

    stage = Stage("s", 1, tmp_path / "a", {}, [PartSpec("00000"), PartSpec("00001")], write_nothing)
    with pytest.raises(StageFailed, match=r"2 receipts are not in .*do the workers see this folder"):
        run_stage(stage, Elsewhere())
    assert not Artifact(tmp_path / "a").is_complete()


def write_nothing(spec: PartSpec, attempt: Path) -> dict[str, int]:
    return {}


def test_every_stage_that_the_config_asks_for_has_a_line(tmp_path: Path, photos: Path) -> None:
    run = Run.open(config(tmp_path, photos))
    build_dataset(run, InProcess())
    lines = {s.name: s.state for s in run_status(run)}
    assert lines["dataset"] == "complete" and set(lines.values()) == {"complete", "missing"}
    assert "clip" not in lines and "eval/attributes" not in lines, (
        "nothing is trained here, and photographs know no attributes"
    )
    order = list(lines)
    for first, then in (("dataset", "scores/basic"), ("views/base", "embeddings"), ("views/train", "models/decoder")):
        assert order.index(first) < order.index(then)


def test_status_names_another_config_and_another_input(tmp_path: Path, photos: Path) -> None:
    run = Run.open(config(tmp_path, photos))
    build_dataset(run, InProcess())
    build_view(run)
    assert {s.state for s in run_status(run)} == {"complete", "missing"}

    def detail(config: Any, name: str = "dataset") -> str:
        line = next(s for s in run_status(Run(config)) if s.name == name)
        assert line.state == "stale", line
        return line.detail

    tables = run.config.to_dict()
    tables["dataset"]["image"]["size"] = 32
    other = make_config(tmp_path, **tables)
    assert "dataset.image.size was 16 when dataset was made, test config says 32; use another run.name" in detail(other)
    reseeded = make_config(
        tmp_path, **run.config.to_dict() | {"run": {"name": "t", "folder": str(tmp_path), "seed": 4}}
    )
    assert all("run.seed was 3 when the run was made" in detail(reseeded, name) for name in ("dataset", "views/base"))
    duplicates = make_config(tmp_path, **run.config.to_dict() | {"views": {"duplicates": {"distance": 1}}})
    assert "views.duplicates.distance was 3 when it was made" in detail(duplicates, "scores/duplicates")
    write_captions(photos, ["a red wall", "another wall", "a blue wall", "a white wall"])
    assert "the source has changed since: source/captions" in detail(run.config)
    (photos / "captions.csv").unlink()
    assert "captions.csv" in detail(run.config)
    shutil.rmtree(photos)
    assert "photos" in detail(run.config)


def test_an_unusable_run_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = tmp_path / "c.toml"
    (tmp_path / "file").write_text("")
    toml.write_text('[run]\nname = "x"\n[dataset.scenes]\nsamples = 3\n')
    commands = [Command("go", "go", lambda c, _: Run.open(c) and None)]
    assert front_door("room", "", commands, ["go", "--config", str(toml), f"run.folder={tmp_path / 'file'}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Not a directory") and error.count("\n") == 1
    assert front_door("room", "", commands, ["go", "--config", str(toml), "eval.grid_guidance=inf"]) == 2
    assert "finite" in capsys.readouterr().err


def test_status_names_a_file_that_was_lost(tmp_path: Path, photos: Path) -> None:
    run = Run.open(make_config(tmp_path, dataset={"folder": {"path": str(photos)}, **FOLDER}))
    build_dataset(run, InProcess())
    assert run_status(run)[0].state == "complete"
    shard = run.dataset.folder / "shards" / "00001.tar"
    for damage in (lambda: shard.write_bytes(shard.read_bytes()[:-512]), shard.unlink):
        damage()
        status = run_status(run)[0]
        assert status.state == "incomplete" and status.command == "make dataset"
        assert status.detail == f"{shard} is missing or of another size than recorded"
    build_dataset(run, InProcess())
    assert run_status(run)[0].state == "complete"


def test_a_stale_precious_artifact_is_used_with_a_note(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model stays usable when more was downloaded or a threshold moved: it is what it is until it is deleted."""
    run = Run.open(config(tmp_path, photos))
    build_dataset(run, InProcess())
    build_view(run)
    build_train_view(run, InProcess())
    part = PartSpec("model", (Input("views/train", run.view("train").digest()),))
    model = run_stage(
        Stage("train-prior", 1, run.model("prior").folder, {}, [part], write_nothing, precious=True), InProcess()
    )
    tables = run.config.to_dict()
    tables["views"]["train"]["rules"] = [{"scores": "basic", "column": "caption_words", "max": 2}]
    moved = Run.open(make_config(tmp_path, **tables))
    build_train_view(moved, InProcess())
    assert state(moved, "models/prior") == "stale"
    assert Lineage(moved).require("models/prior").digest() == model.digest()
    assert "note: models/prior is used as it is, though views/train has changed since" in capsys.readouterr().err


def test_somebody_elses_view_that_keeps_removed_samples_is_stale_and_named(tmp_path: Path, photos: Path) -> None:
    run = Run.open(config(tmp_path, photos))
    build_dataset(run, InProcess())
    build_view(run)
    digests = run.view("base").part_digests()
    parts = [
        PartSpec(
            name, (Input(f"scores/basic:{name}", run.scores("basic").part_digests()[name]),), run.view("base").folder
        )
        for name in digests
    ]
    run_stage(Stage("mine", 1, run.view("mine").folder, {}, parts, copy_view), InProcess())
    run_stage(Stage("own", 1, run.folder / "mine", {}, parts, copy_view), InProcess())
    assert Lineage(run).why_stale("views/mine") is None
    lines = "\n".join(remove(run, {Entry("key", "000000000"): ["000000000"]}, InProcess()))
    assert Lineage(run).why_stale("views/mine") == "it keeps samples that were removed since"
    assert "views/mine: 00000.parquet names 1 of them" in lines and "  mine: 00000.parquet names 1 of them" in lines
    assert "views/base" not in lines.partition("These have seen them")[2]


def copy_view(spec: PartSpec, attempt: Path) -> dict[str, int]:
    shutil.copy(spec.work / f"{spec.name}.parquet", attempt)
    return {}


def test_status_reads_the_users_files_once(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(config(tmp_path, photos))
    build_dataset(run, InProcess())
    asked: list[Run] = []
    monkeypatch.setattr("data.stages.refuse_changed_source", asked.append)
    run_status(run)
    assert len(asked) == 1
