import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.generations import find_generations, read_generations
from data.pipeline.artifacts import Artifact, publish_bytes
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import InProcess, open_executor
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.settings import ClusterSettings
from data.pipeline.stage import Input
from humaneval.study.build import build_study
from humaneval.study.draft import Naming, Source, draw_questions
from humaneval.study.images import check_png, compose_grid
from humaneval.study.study import Study
from tests.humaneval.fake_run import CAPTIONS, GUIDANCE, fake_config, fake_run, make_images, png


def build(run: Run) -> Study:
    return Study(build_study(run, run.config, InProcess(), precious=False))


def two_sources(folder: Path, captions_b: tuple[str, ...] = CAPTIONS, **of_b: Any) -> Run:
    """A run with `captions` images only."""
    run = Run.open(fake_config(folder, {"questions": {"diversity": 0}}))
    make_images(run.folder / "generations/unclip/captions-0", "unclip", "captions", 2)
    make_images(run.folder / "generations/glide/captions-0", "glide", "captions", 2, captions=captions_b, **of_b)
    return run


def test_every_caption_makes_one_question_of_each_kind(study: Study) -> None:
    kinds = [question.kind for question in study.questions.values()]
    assert {kind: kinds.count(kind) for kind in study.kinds} == dict.fromkeys(
        ["photorealism", "caption_similarity", "diversity"], len(CAPTIONS)
    )
    shown = {question.caption for question in study.questions.values() if question.kind != "photorealism"}
    assert shown == set(CAPTIONS)
    assert {question.caption for question in study.questions.values() if question.kind == "photorealism"} == {None}
    assert study.artifact.verify() == []


def test_images_are_the_generated_files(run: Run, study: Study) -> None:
    """Both images of a pair are files of the two systems for the same prompt and image index, untouched."""
    files = {}
    for system in study.systems:
        artifact = find_generations(run.folder, system, "captions", GUIDANCE)
        files[system] = {
            row["image_id"]: (artifact.folder / row["file"]).read_bytes()
            for row in read_generations(artifact).to_pylist()
        }
    for question in study.questions.values():
        if question.kind == "diversity":
            continue
        for token in question.images:
            system = dict(zip("ab", study.systems, strict=True))[study.arm(token)]
            (image_id,) = study.key["image_ids"][token]
            assert study.image(token) == files[system][image_id]
        assert {study.arm(token) for token in question.images} == {"a", "b"}
        assert study.key["image_ids"][question.images[0]] == study.key["image_ids"][question.images[1]]


def test_grid_cells_are_the_generated_pixels(run: Run, study: Study) -> None:
    question = next(q for q in study.questions.values() if q.kind == "diversity")
    token = question.images[0]
    system = dict(zip("ab", study.systems, strict=True))[study.arm(token)]
    artifact = find_generations(run.folder, system, "grids", GUIDANCE)
    grid = np.asarray(Image.open(io.BytesIO(study.image(token))))
    assert grid.shape == (4 * 16 + 3, 4 * 16 + 3, 3)
    for i, image_id in enumerate(study.key["image_ids"][token]):
        y, x = 17 * (i // 4), 17 * (i % 4)
        assert np.array_equal(grid[y : y + 16, x : x + 16], np.asarray(Image.open(artifact.folder / f"{image_id}.png")))
    assert (grid[16::17] == 255).all() and (grid[:, 16::17] == 255).all()


def test_nothing_a_rater_could_read_names_a_system(study: Study) -> None:
    text = (study.artifact.folder / "study.json").read_text()
    names = [path.name for path in (study.artifact.folder / "images").iterdir()]
    for secret in ("unclip", "glide", "p0-0", "prompt_id"):
        assert secret not in text
        assert not any(secret in name for name in names)


def test_token_order_does_not_tell_the_system(tmp_path: Path) -> None:
    """Over many questions, the first token is system a's about half the time: 200 fair coins give 70..130 but for 1 in 30,000."""
    captions = tuple(f"caption {i}" for i in range(200))
    make_images(tmp_path / "a", "unclip", "captions", 1, captions=captions)
    make_images(tmp_path / "b", "glide", "captions", 1, captions=captions)
    sources = [Source.read("a", Artifact(tmp_path / "a")), Source.read("b", Artifact(tmp_path / "b"))]
    questions = draw_questions("photorealism", None, *sources, Naming(0, sources))
    assert 70 <= sum(question.images[0].arm == "a" for question in questions) <= 130
    fewer = draw_questions("photorealism", 50, *sources, Naming(0, sources))
    assert {q.id for q in fewer} < {q.id for q in questions} and len(fewer) == 50
    other = draw_questions("photorealism", 50, *sources, Naming(1, sources))
    assert {q.prompt_id for q in other} != {q.prompt_id for q in fewer}
    with pytest.raises(UserError, match="200 captions"):
        draw_questions("photorealism", 201, *sources, Naming(0, sources))


def test_same_inputs_same_bytes_and_any_content_changes_the_hash(study: Study, tmp_path: Path) -> None:
    again = build(fake_run(tmp_path / "again"))
    assert again.hash == study.hash and again.artifact.digest() == study.artifact.digest()
    assert build(fake_run(tmp_path / "fewer", {"questions": {"photorealism": 3}})).hash != study.hash
    swapped = {
        "system_a": {"name": "glide", "guidance": GUIDANCE},
        "system_b": {"name": "unclip", "guidance": GUIDANCE},
    }
    assert build(fake_run(tmp_path / "swapped", swapped)).hash != study.hash


def test_rebuilding_changes_nothing_and_people_make_a_study_precious(tmp_path: Path) -> None:
    run = two_sources(tmp_path)
    before = build(run)
    assert build(run).hash == before.hash
    changed = tuple(caption.upper() for caption in CAPTIONS)
    for system in ("unclip", "glide"):
        folder = run.folder / f"generations/{system}"
        (folder / "captions-0" / "manifest.json").unlink()
        make_images(folder / "captions-1", system, "captions", 2, captions=changed)
    with pytest.raises(UserError) as refused:
        build_study(run, run.config, InProcess(), precious=True)
    assert refused.value.code == Code.STALE
    assert build(run).hash != before.hash


@pytest.mark.parametrize(
    ("of_b", "complaint"),
    [
        ({"side": 32}, "differ in"),
        ({"comment": "made by glide"}, "tEXt chunk"),
        ({"captions_b": ("another", *CAPTIONS[1:])}, "different prompts"),
    ],
)
def test_images_that_would_tell_are_refused(tmp_path: Path, of_b: dict[str, Any], complaint: str) -> None:
    run = two_sources(tmp_path, **of_b)
    with pytest.raises(UserError, match=complaint):
        build(run)


def test_a_changed_image_is_refused(tmp_path: Path) -> None:
    run = two_sources(tmp_path)
    for path in (run.folder / "generations/glide/captions-0").glob("p0-*.png"):
        path.write_bytes(png(999, 16))
    with pytest.raises(UserError, match="not the image that its index") as refused:
        build(run)
    assert refused.value.code == Code.DAMAGED


def test_too_few_images_for_a_grid_are_refused(tmp_path: Path) -> None:
    run = Run.open(fake_config(tmp_path, {"questions": {"photorealism": 0, "caption_similarity": 0}}))
    for system in ("unclip", "glide"):
        make_images(run.folder / f"generations/{system}/grids-0", system, "grids", 15)
    with pytest.raises(UserError, match="needs 16 images"):
        build(run)


def test_damage_is_noticed(tmp_path: Path) -> None:
    study = build(two_sources(tmp_path))
    question = next(iter(study.questions.values()))
    (study.artifact.folder / "images" / f"{question.images[0]}.png").write_bytes(png(1, 16))
    with pytest.raises(UserError, match="damaged"):
        study.image(question.images[0])
    key = json.loads((study.artifact.folder / "key.json").read_text())
    key["images"] = {token: "b" if arm == "a" else "a" for token, arm in key["images"].items()}
    (study.artifact.folder / "key.json").write_text(json.dumps(key))
    with pytest.raises(UserError, match="answer key"):
        Study(study.artifact).arm(question.images[0])


def test_a_missing_study_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="humaneval build") as missing:
        Study.of(Run.open(fake_config(tmp_path)))
    assert missing.value.code == Code.MISSING


def test_a_study_of_other_systems_than_the_config_compares_is_stale(run: Run) -> None:
    assert Lineage(run).why_stale("humaneval/study") is None
    rows = {"glide": {"decoder": "glide"}, "unclip": {"prior": "prior", "decoder": "decoder"}}
    other = Run(fake_config(run.folder.parent, systems=rows))
    assert "compares unclip at guidance 2 with glide at guidance 2, the config asks for glide" in str(
        Lineage(other).why_stale("humaneval/study")
    )


def test_images_of_replaced_weights_are_refused_until_they_are_generated_again(tmp_path: Path) -> None:
    rows = {"unclip": {"decoder": "decoder"}, "glide": {"decoder": "glide"}}
    run = Run.open(fake_config(tmp_path, {"questions": {"diversity": 0}}, systems=rows))

    def train(version: bytes) -> tuple[Input, ...]:
        model = run.model("decoder")
        publish_bytes(model.manifest_path, version)
        return (Input("models/decoder", model.digest()),)

    make_images(run.folder / "generations/glide/captions-0", "glide", "captions", 2)
    make_images(run.folder / "generations/unclip/captions-0", "unclip", "captions", 2, inputs=train(b"{}"))
    study = build(run)
    assert Lineage(run).why_stale("humaneval/study") is None
    assert set(Lineage(run).upstream("humaneval/study")) == {f"generations/{s}/captions-0" for s in ("unclip", "glide")}
    trained_again = train(b'{"parts": []}')
    assert "models/decoder" in str(Lineage(run).why_stale("humaneval/study"))
    with pytest.raises(UserError, match="models/decoder") as refused:
        build(run)
    assert refused.value.code == Code.STALE
    with pytest.raises(UserError, match="models/decoder") as refused:
        Study.of(run)
    assert refused.value.code == Code.STALE, "raters are not asked about images that are others today"
    assert Study(run.artifact("humaneval/study")).hash == study.hash, "what people rate stays readable"
    make_images(run.folder / "generations/unclip/captions-0", "unclip", "captions", 2, inputs=trained_again)
    assert build(run).artifact.verify() == [] and Lineage(run).why_stale("humaneval/study") is None


@pytest.mark.slow
def test_a_cluster_makes_the_same_study(study: Study, tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    with open_executor(ClusterSettings(workers=2), run.scratch) as executor:
        assert (
            Study(build_study(run, run.config, executor, precious=False)).artifact.digest() == study.artifact.digest()
        )


def test_check_png() -> None:
    content = png(3, 16)
    assert check_png(content, Path("x.png")) == (16, 16, 8, 2)
    for broken in (b"", b"GIF89a", content[:-5], content + b"glide"):
        with pytest.raises(UserError):
            check_png(broken, Path("x.png"))


def test_compose_grid_is_deterministic_and_refuses_mixed_sizes() -> None:
    cells = [png(i, 8) for i in range(16)]
    assert hashlib.sha256(compose_grid(cells)).digest() == hashlib.sha256(compose_grid(cells)).digest()
    with pytest.raises(UserError, match="one size"):
        compose_grid([*cells[:15], png(0, 9)])
