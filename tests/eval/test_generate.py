"""Prompt sets and generated images on a real tiny dataset: held out, distinct, keyed, the same for every system."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

from data.generations import find_generations, read_generations
from data.pipeline.artifacts import Artifact, sha256_file
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import InProcess
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from eval.generate import GenerationJob, draw_caption, generate, generation_stage, image_rows, image_seed
from eval.images import GeneratedImages, read_png, tile
from eval.prompts import (
    Prompt,
    choose_prompts,
    make_prompts,
    names_all,
    part_path,
    prompts_stage,
    read_part,
    read_prompts,
)
from eval.real_images import RealImages, RealSource, ranked
from eval.settings import EvalSettings, PromptSetSettings
from tests.eval.tiny_run import HOSTILE, FakeSystem, fake_system, make_run, train

SMALL = {"captions": 12, "images": 2, "two_object": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("runs"), captions=SMALL)
    make_prompts(run, InProcess())
    return run


@pytest.fixture(scope="module")
def real(run):
    return RealImages(run.dataset, run.view("base"))


def test_prompts_are_held_out_distinct_and_name_what_is_asked(real):
    prompts = choose_prompts(real, "captions", PromptSetSettings(captions=40, images=2, two_object=5), seed=3)
    assert {p.split for p in prompts} == {"test"}
    assert len({p.caption for p in prompts}) == len({p.caption_key for p in prompts}) == 40
    assert sorted(p.objects for p in prompts) == [1] * 35 + [2] * 5
    for p in prompts:
        assert p.caption == real.meta[p.caption_key]["captions"][p.caption_index]
        assert "background" in p.named and all("colour" in thing for thing in p.named["objects"])


def test_validation_images_follow_when_the_test_split_is_used_up(real):
    prompts = choose_prompts(real, "captions", PromptSetSettings(captions=90, images=1), seed=3)
    assert {p.split for p in prompts} == {"test", "val"}


def test_the_choice_depends_on_seed_and_name_and_a_larger_set_extends_a_smaller_one(real):
    def ids(n: int, name: str = "a", seed: int = 0) -> set[str]:
        return {p.prompt_id for p in choose_prompts(real, name, PromptSetSettings(captions=n, images=1), seed)}

    assert ids(20) == ids(20)
    assert ids(10) < ids(20)
    assert ids(20) != ids(20, seed=1)
    assert ids(20) != ids(20, name="b")


def test_too_few_captions_are_counted_out(real):
    with pytest.raises(
        UserError,
        match=r"needs 500 distinct held-out captions of 1 object that name colour and background, there are \d+ \(90 test and 90 val",
    ):
        choose_prompts(real, "captions", PromptSetSettings(captions=500, images=1), seed=0)


def test_names_all_looks_at_every_object():
    named = {"objects": [{"colour": "red"}, {}], "background": "white"}
    assert not names_all(named, ("colour", "background"))
    assert names_all({"objects": [{"colour": "red"}], "background": "white"}, ("colour", "background"))


def test_prompts_survive_their_file(run, real):
    chosen = choose_prompts(real, "captions", run.config[EvalSettings].captions, run.seed)
    assert read_prompts(run.artifact("prompts/captions")) == chosen


def test_a_set_of_many_prompts_has_a_part_for_each_batch_of_images(run, real):
    settings = PromptSetSettings(captions=40, images=2, two_object=4)
    artifact = run_stage(prompts_stage(run, RealSource.of(run), "many", settings), InProcess())
    assert read_prompts(artifact) == choose_prompts(real, "many", settings, run.seed)
    sizes = [len(read_part(part_path(artifact, name))) for name in artifact.part_digests()]
    assert sizes == [32, 8]


def job_of(system: FakeSystem, guidance: float = 1.0) -> GenerationJob:
    return GenerationJob(system, "captions", guidance, images_per_prompt=2, seed=3)


def draw(run: Run, *jobs: GenerationJob) -> list[Artifact]:
    return generate(run, jobs, InProcess())


def test_images_are_indexed_and_made_once(run):
    system = FakeSystem("unclip", faithful=True)
    [artifact] = draw(run, job_of(system))
    made = len(system.calls)
    rows = read_generations(artifact).to_pylist()
    assert draw(run, job_of(system))[0].digest() == artifact.digest()
    assert len(system.calls) == made
    assert len(rows) == 24 and artifact.verify() == []
    assert [r["image_id"] for r in rows] == sorted(r["image_id"] for r in rows)
    for row in rows:
        assert row["image_id"] == f"{row['prompt_id']}-{row['image_index']:02d}"
        assert sha256_file(artifact.folder / row["file"]) == row["sha256"]
        assert row["seed"] == image_seed(3, row["prompt_id"], row["image_index"])
        assert (row["guidance_decoder"], row["steps"], row["width"]) == (1.0, 5, 16)
        assert row["guidance_prior"] is None or math.isnan(row["guidance_prior"])
    assert find_generations(run.folder, "unclip", "captions", 1.0).folder == artifact.folder
    images = GeneratedImages.of(artifact)
    loaded = images.load()
    assert images.name == f"unclip-{artifact.folder.name}"
    assert loaded.ids == [r["image_id"] for r in rows] and loaded.pixels.shape == (24, 16, 16, 3)


def test_every_system_gets_the_same_captions_and_seeds(run):
    tables = [read_generations(a) for a in draw(run, *(job_of(FakeSystem(s, True), 2.0) for s in ("unclip", "glide")))]
    for column in ("image_id", "caption", "seed"):
        assert tables[0][column].equals(tables[1][column])


def test_parts_travel(run):
    for part in generation_stage(run, job_of(FakeSystem("unclip", True))).parts:
        assert pickle.loads(pickle.dumps(part)) == part  # noqa: S301
    for part in prompts_stage(run, RealSource.of(run), "captions", run.config[EvalSettings].captions).parts:
        assert pickle.loads(pickle.dumps(part)) == part  # noqa: S301


def test_seeds_are_keyed_and_never_positional():
    prompts = [Prompt(f"{i:03d}-0", "c", f"{i:03d}", 0, "test", {}, {}) for i in range(5)]
    whole = {(p.prompt_id, i): seed for p, i, seed in image_rows(prompts, 3, 0)}
    some = {(p.prompt_id, i): seed for p, i, seed in image_rows(prompts[3:], 2, 0)}
    assert some.items() <= whole.items()
    assert len(set(whole.values())) == 15


def test_other_settings_make_another_artifact():
    system = FakeSystem("unclip", True)
    assert job_of(system, 1.0).folder != job_of(system, 2.0).folder
    assert job_of(system).folder != replace(job_of(system), images_per_prompt=3).folder


def test_a_retrained_model_makes_its_images_anew(run):
    name = "generations/unclip/" + job_of(FakeSystem("unclip", True), 4.0).folder.rpartition("/")[2]

    def drawn_by_todays_model() -> FakeSystem:
        system = fake_system(run, "unclip")
        draw(run, job_of(system, 4.0))
        return system

    before = drawn_by_todays_model()
    assert before.calls and not drawn_by_todays_model().calls
    train(run, "decoder", 2)
    assert "models/decoder has changed since" in (Lineage(run).why_stale(name) or "")
    with pytest.raises(UserError) as error:
        Lineage(run).require(name)
    assert error.value.code == Code.STALE
    assert drawn_by_todays_model().calls == before.calls
    assert Lineage(run).why_stale(name) is None


def test_two_folders_of_the_same_images_are_refused(run):
    job = job_of(FakeSystem("unclip", True), 8.0)
    folders = [a.folder.name for a in draw(run, job, replace(job, images_per_prompt=1, guidance=8.0))]
    with pytest.raises(UserError, match="delete the outdated one") as error:
        find_generations(run.folder, "unclip", "captions", 8.0)
    assert all(name in str(error.value) for name in folders)


def test_a_free_caption_is_drawn_as_a_grid():
    grid = draw_caption(FakeSystem("unclip", True), HOSTILE, 8, 1.0, run_seed=0)
    assert grid.shape == (3 * 18 - 2, 3 * 18 - 2, 3)


def test_tiles_are_the_images_byte_for_byte():
    images = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3), dtype=np.uint8)
    sheet = tile(images, columns=3)
    np.testing.assert_array_equal(sheet[5:9, 5:9], images[4])
    assert (sheet[5:9, 10:14] == 255).all()


def test_what_is_not_a_png_is_refused():
    with pytest.raises(UserError, match="cannot be read as PNG"):
        read_png(b"GIF89a")


def test_ranking_does_not_depend_on_the_given_order():
    keys = [f"{i:03d}" for i in range(50)]
    assert ranked(keys, 0, "x") == ranked(keys[::-1], 0, "x") != ranked(keys, 0, "y")
