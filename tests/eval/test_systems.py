"""A system of a run: the prior's draws serve every scale of the decoder, in whichever process, and a system travels."""

import pickle
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

import eval.systems as systems
from data.pipeline.errors import Code, UserError
from data.pipeline.stage import Input
from eval.systems import RunSystem, open_system, open_systems
from tests.eval.tiny_run import fake_clip, make_run
from training.systems import SamplingOptions


@dataclass
class CountingModel:
    """z_i is the seed, an image is z_i plus the scale."""

    drawn: list[list[str]] = field(default_factory=list)

    def embed(self, captions, seeds, options):
        self.drawn.append(list(captions))
        return torch.tensor(seeds, dtype=torch.float32)[:, None]

    def decode(self, captions, z_i, seeds, options):
        return (z_i.numpy() + options.guidance_decoder).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("runs"), {"a": {"prior": "prior", "decoder": "decoder"}, "b": {"decoder": "glide"}}
    )


@pytest.fixture
def model(monkeypatch) -> CountingModel:
    model = CountingModel()
    monkeypatch.setattr(systems, "_loaded", lambda _: model)
    return model


CHUNKS = [(["a", "b"], [1, 2]), (["c"], [3]), (["a", "b"], [1, 4])]


def test_the_prior_is_drawn_once_for_all_scales(run, model, tmp_path):
    system = RunSystem(run, "a", 1, True, SamplingOptions(), (Input("models/prior", "00"),), tmp_path)
    for scale in (1.0, 2.0, 3.0):
        for captions, seeds in CHUNKS:
            found = pickle.loads(pickle.dumps(system)).generate(captions, seeds, scale)  # noqa: S301
            np.testing.assert_array_equal(found[:, 0], np.array(seeds) + scale)
    assert model.drawn == [captions for captions, _ in CHUNKS]
    replace(system, inputs=(Input("models/prior", "01"),)).generate(*CHUNKS[0], 1.0)
    assert len(model.drawn) == 4


def test_without_a_folder_it_is_drawn_each_time(run, model):
    system = RunSystem(run, "a", 1, True, SamplingOptions(), ())
    for _ in range(2):
        assert system.generate(["a", "b"], [1, 2], 1.0).tolist() == [[2], [3]]
    assert len(model.drawn) == 2


def test_systems_are_the_rows_of_the_config(run, monkeypatch):
    monkeypatch.setattr("eval.systems.ClipExtractor.open", fake_clip)
    a, b = open_systems(run)
    assert (a.name, b.name, a.guidance_prior, b.guidance_prior, a.side) == ("a", "b", 1.0, None, 16)
    assert [one.of for one in a.inputs] == ["@clip", "models/prior", "models/decoder"]
    assert "candidates" in a.sampling and "candidates" not in b.sampling
    with pytest.raises(UserError, match="the rows of \\[systems\\] are a, b"):
        open_system(run, "unclip")


def test_models_that_are_not_trained_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.systems.ClipExtractor.open", fake_clip)
    run = make_run(tmp_path)
    run.model("prior").manifest_path.unlink()
    with pytest.raises(UserError, match="make train") as error:
        open_system(run, "unclip")
    assert error.value.code == Code.MISSING
