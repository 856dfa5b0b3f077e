"""torchmetrics on the same features gives the same numbers: another implementation, by other hands."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.multimodal.clip_score import CLIPScore
from torchmetrics.retrieval import RetrievalHitRate

from eval.metrics.clip_score import clip_score, r_precision
from eval.metrics.frechet import frechet_distance
from eval.metrics.gaussian import Gaussian


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class GivenFeatures(nn.Module):
    num_features = 24

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("n", [200, 30])
def test_frechet_distance_is_torchmetrics(rng, n):
    real, generated = rng.normal(size=(150, 24)), 1.3 * rng.normal(size=(n, 24)) + 0.2
    peer = FrechetInceptionDistance(feature=GivenFeatures()).set_dtype(torch.float64)
    peer.update(torch.from_numpy(real), real=True)
    peer.update(torch.from_numpy(generated), real=False)
    found = frechet_distance(Gaussian.fit(generated), Gaussian.fit(real))
    assert found == pytest.approx(float(peer.compute()), rel=1e-6)


class GivenVectors(nn.Module):
    """In CLIP's place: an image is its own vector, a caption names one by its row."""

    config = SimpleNamespace()

    def __init__(self, texts: np.ndarray) -> None:
        super().__init__()
        self.texts = torch.from_numpy(texts)

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.texts[ids]


def by_row(text=None, images=None, **_: object) -> dict[str, torch.Tensor]:
    if images is not None:
        return {"pixel_values": torch.stack(images)}
    ids = torch.tensor([int(t) for t in text])
    return {"input_ids": ids, "attention_mask": torch.ones(len(ids), 1)}


def test_clip_score_is_torchmetrics(rng):
    texts = unit(rng.normal(size=(40, 9)))
    images = unit(texts + 0.8 * rng.normal(size=(40, 9)))
    peer = CLIPScore(model_name_or_path=lambda: (GivenVectors(texts), by_row)).set_dtype(torch.float64)
    peer.update([torch.from_numpy(image).reshape(1, 3, 3) for image in images], [str(i) for i in range(40)])
    assert clip_score(images, texts).mean() == pytest.approx(float(peer.compute()), rel=1e-5)


def test_r_precision_is_torchmetrics(rng):
    captions = unit(rng.normal(size=(12, 6)))
    own = rng.integers(12, size=50)
    images = unit(captions[own] + 0.7 * rng.normal(size=(50, 6)))
    similarity = torch.from_numpy(images @ captions.T)
    target = torch.nn.functional.one_hot(torch.from_numpy(own), 12)
    queries = torch.arange(50)[:, None].expand(50, 12)
    peer = RetrievalHitRate(top_k=1)(similarity.flatten(), target.flatten(), indexes=queries.flatten())
    found = r_precision(images, captions, own)
    assert 0 < found.mean() < 1
    assert found.mean() == pytest.approx(float(peer), abs=1e-6)
