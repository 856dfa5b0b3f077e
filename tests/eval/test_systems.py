"""A system of a run: the prior's draws serve every scale of the decoder."""

from dataclasses import dataclass, field

import numpy as np
import torch

import eval.systems as systems
from eval.systems import RunSystem
from training.systems import SamplingOptions


@dataclass
class CountingModel:
    """z_i is the seed, an image is z_i plus the scale."""

    name: str = "unclip"
    side: int = 1
    prior: str | None = "a prior"
    drawn: list[list[str]] = field(default_factory=list)

    def embed(self, captions, seeds, options):
        self.drawn.append(list(captions))
        return torch.tensor(seeds, dtype=torch.float32)[:, None]

    def decode(self, captions, z_i, seeds, options):
        return (z_i.numpy() + options.guidance_decoder).astype(np.uint8)


def test_the_prior_is_drawn_once_for_all_scales():
    model = CountingModel()
    system = RunSystem(model, SamplingOptions(), {})
    chunks = [(["a", "b"], [1, 2]), (["c"], [3]), (["a", "b"], [1, 4])]
    for scale in (1.0, 2.0, 3.0):
        for captions, seeds in chunks:
            np.testing.assert_array_equal(system.generate(captions, seeds, scale)[:, 0], np.array(seeds) + scale)
    assert model.drawn == [captions for captions, _ in chunks]


def test_what_does_not_fit_is_drawn_again(monkeypatch):
    monkeypatch.setattr(systems, "MEMORY_LIMIT", 8)
    model = CountingModel()
    system = RunSystem(model, SamplingOptions(), {})
    for _ in range(2):
        assert system.generate(["a", "b"], [1, 2], 1.0).tolist() == [[2], [3]]
        assert system.generate(["c"], [3], 1.0).tolist() == [[4]]
    assert model.drawn == [["a", "b"], ["c"], ["c"]]
