"""The room's stages on a small real run: artifacts, refusals, resume, and both systems' images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.pipeline.artifacts import Artifact
from data.pipeline.config import parse_config
from data.pipeline.errors import Code, UserError
from data.pipeline.run import Run
from embed.clip.model import load_clip
from embed.reading.reader import EmbeddingReader
from tests.conftest import make_config, tree_bytes
from training.launch import train
from training.sampling.decoder import load_decoder, sample_decoder
from training.sampling.prior import load_prior
from training.systems import SamplingOptions, load_system
from training.tasks.decoder import glide_stage
from training.tasks.prior import prior_stage

OPTIONS = SamplingOptions(guidance_prior=1.5, guidance_decoder=2.0, steps_prior=3, steps_decoder=3, batch=4)
CAPTIONS = ["a red square", "a small green circle on a white background", "two blue triangles", "a star", ""]


def test_artifacts_are_complete_and_say_what_they_are(trained_run: Run) -> None:
    identity = load_clip(trained_run).identity
    for name, kind in (("prior", "prior"), ("decoder", "decoder"), ("glide", "glide")):
        artifact = trained_run.model(name)
        assert artifact.verify() == []
        config = json.loads((artifact.folder / "config.json").read_bytes())
        assert (config["kind"], config["step"], config["inputs"]["@clip"]) == (kind, 3, identity)
        log = pq.read_table(artifact.folder / "log.parquet").to_pylist()
        assert [row["step"] for row in log if row["name"] == "loss"] == [1, 2, 3]
        assert {"val/loss"} <= {row["name"] for row in log}
    assert trained_run.clip.verify() == []
    metrics = json.loads((trained_run.clip.folder / "metrics.json").read_bytes())
    assert 0 <= metrics["val/image_to_text_r1"] <= metrics["val/image_to_text_r5"] <= 1
    assert not (trained_run.scratch / "train" / "prior").exists() or not any(
        (trained_run.scratch / "train" / "prior").iterdir()
    )


def test_prior_validation_has_its_controls(trained_run: Run) -> None:
    log = pq.read_table(trained_run.model("prior").folder / "log.parquet").to_pylist()
    last = {row["name"]: row["value"] for row in log}
    assert {f"val/cosine_{name}" for name in ("drawn", "text", "mean", "shuffled")} <= last.keys()
    reader = EmbeddingReader(trained_run.embeddings, trained_run.view("train"), "val")
    pairs = reader.fetch(range(len(reader)))
    if len(reader) <= 8:
        truth = (pairs.image_embedding.double() * pairs.text_embedding.double()).sum(1).mean().item()
        assert last["val/cosine_text"] == pytest.approx(truth, abs=1e-5)


def test_training_again_does_nothing_and_another_run_gives_the_same_bytes(trained_run: Run, tmp_path: Path) -> None:
    folder = trained_run.model("prior").folder
    before = tree_bytes(folder)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    train(trained_run, prior_stage(trained_run))
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    shutil.copytree(
        trained_run.folder, tmp_path / "t", ignore=shutil.ignore_patterns("models", "config.toml", "*.lock")
    )
    tables = trained_run.config.to_dict()
    tables["run"]["folder"] = str(tmp_path)
    other = Run(parse_config(tables, "test"))
    train(other, prior_stage(other))
    assert tree_bytes(tmp_path / "t" / "models" / "prior") == before


def test_trained_models_are_refused_not_replaced(trained_run: Run, tmp_path: Path) -> None:
    shutil.copytree(trained_run.folder, tmp_path / "t", ignore=shutil.ignore_patterns("*.lock"))
    tables = trained_run.config.to_dict()
    tables["run"]["folder"] = str(tmp_path)
    tables["prior"]["drop"] = 0.2
    other = Run(parse_config(tables, "test"))
    with pytest.raises(UserError, match=r"prior\.drop = 0\.1, this config says 0\.2") as error:
        train(other, prior_stage(other))
    assert error.value.code == Code.OTHER_CONFIG


def test_missing_inputs_name_the_make_target(tmp_path: Path) -> None:
    run = Run(make_config(tmp_path))
    with pytest.raises(UserError, match="make embeddings"):
        prior_stage(run)
    with pytest.raises(UserError, match="make dataset"):
        glide_stage(run)
    with pytest.raises(UserError, match="make train"):
        load_prior(run.model("prior"))


def test_empty_split_is_refused(trained_run: Run) -> None:
    with pytest.raises(UserError, match="no pair of the split 'nosuch' is left"):
        EmbeddingReader(trained_run.embeddings, trained_run.view("train"), "nosuch")


def copy_of(artifact: Artifact, folder: Path) -> Artifact:
    shutil.copytree(artifact.folder, folder, ignore=shutil.ignore_patterns("*.lock"))
    return Artifact(folder)


def test_another_clip_and_another_kind_are_refused(trained_run: Run) -> None:
    with pytest.raises(UserError, match="trained beside the CLIP") as error:
        load_decoder(trained_run.model("decoder"), "0" * 64)
    assert error.value.code == Code.FOREIGN
    with pytest.raises(UserError, match="holds a glide, not a prior"):
        load_prior(trained_run.model("glide"))
    with pytest.raises(UserError, match="holds a prior, not a decoder or glide"):
        load_decoder(trained_run.model("prior"))


def test_weights_that_do_not_fit_are_refused_in_words(trained_run: Run, tmp_path: Path) -> None:
    artifact = copy_of(trained_run.model("prior"), tmp_path / "prior")
    path = artifact.folder / "model.safetensors"
    tensors = load_file(path)
    cases = [
        ({k: v for k, v in tensors.items() if k != "null_z_t"}, r"1 tensors missing \(null_z_t\)"),
        (tensors | {"more": torch.zeros(1)}, r"1 unknown \(more\)"),
        (tensors | {"null_z_t": torch.zeros(3)}, r"null_z_t has shape \(3,\), its config describes \(16,\)"),
    ]
    for changed, said in cases:
        save_file(changed, path)
        with pytest.raises(UserError, match=said):
            load_prior(artifact)
    path.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        load_prior(artifact)
    (artifact.folder / "config.json").write_text('{"format": 2, "kind": "prior"}')
    with pytest.raises(UserError, match="does not describe a model: KeyError"):
        load_prior(artifact)


@pytest.mark.parametrize("found", [1, 99])
def test_another_format_is_refused(trained_run: Run, tmp_path: Path, found: int) -> None:
    artifact = copy_of(trained_run.model("prior"), tmp_path / "prior")
    (artifact.folder / "config.json").write_text(json.dumps({"format": found}))
    with pytest.raises(UserError, match=f"has format {found}, this version reads 2") as error:
        load_prior(artifact)
    assert error.value.code == Code.OTHER_VERSION


@pytest.mark.parametrize("name", ["unclip", "glide"])
def test_an_image_depends_on_its_caption_and_seed_alone(trained_run: Run, name: str) -> None:
    system = load_system(trained_run, name, "cpu")
    together = system.generate(CAPTIONS, [1, 2, 3, 4, 5], OPTIONS)
    assert together.shape == (5, 8, 8, 3) and together.dtype == np.uint8
    alone = system.generate(CAPTIONS[2:3], [3], OPTIONS)
    backwards = system.generate(CAPTIONS[::-1], [5, 4, 3, 2, 1], OPTIONS)
    assert np.array_equal(together[2:3], alone)
    assert np.array_equal(together, backwards[::-1])
    assert not np.array_equal(together[2:3], system.generate(CAPTIONS[2:3], [4], OPTIONS))
    assert system.generate([], [], OPTIONS).shape == (0, 8, 8, 3)


def test_text_embeddings_do_not_depend_on_their_batch(trained_run: Run) -> None:
    system = load_system(trained_run, "unclip", "cpu")
    together = system.embed(CAPTIONS, [1, 2, 3, 4, 5], OPTIONS)
    assert torch.equal(together[3:4], system.embed(CAPTIONS[3:4], [4], OPTIONS))


def test_caption_only_and_embedding_only_rows(trained_run: Run) -> None:
    system = load_system(trained_run, "unclip", "cpu")
    ids = system.clip.tokenize(CAPTIONS[:2])
    z = system.clip.encode_text(ids)

    def draw(ids: torch.Tensor, z_i: torch.Tensor | None, drop_caption: bool) -> np.ndarray:
        return sample_decoder(system.decoder, system.clip, ids, z_i, [0, 0], 1.0, 2, 4, drop_caption=drop_caption)

    assert np.array_equal(draw(ids, z, True), draw(ids.flip(0), z, True))
    assert not np.array_equal(draw(ids, z, True), draw(ids, z.flip(0), True))
    assert not np.array_equal(draw(ids, None, False), draw(ids.flip(0), None, False))


def test_counts_must_agree(trained_run: Run) -> None:
    with pytest.raises(UserError, match="2 captions need as many seeds, got 1"):
        load_system(trained_run, "glide", "cpu").generate(CAPTIONS[:2], [1], OPTIONS)
    with pytest.raises(UserError, match="unknown system"):
        load_system(trained_run, "dalle", "cpu")
