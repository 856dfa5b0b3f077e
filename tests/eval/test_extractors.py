"""Inception's path on random weights of clean-fid's interface; our resizing against clean-fid's own function."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import nn

from data.pipeline.errors import UserError
from eval.extract.inception import InceptionExtractor, resize_for_inception
from eval.settings import InceptionSettings


class Layers(nn.Module):
    """2,048 features from 299-pixel images that were scaled to [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2048, 16, stride=64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] == 299
        return torch.relu(self.conv(x)).mean(dim=[2, 3])


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers((x - 128) / 128)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception-2015-12-05.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.jit.script(Inception()).save(str(path))
    return path


def settings_for(path: Path) -> InceptionSettings:
    return InceptionSettings(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(5, 40, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(16, 16, 3), (64, 48, 3), (400, 512, 3)])
def test_resizing_is_clean_fids(shape):
    image = np.random.default_rng(1).integers(0, 256, size=shape, dtype=np.uint8)
    np.testing.assert_array_equal(resize_for_inception(image), build_resizer("clean")(image))


def test_features_are_clean_fids_for_any_batch_size(weights, images):
    peer = InceptionV3W(str(weights.parent), download=False)
    resized = torch.from_numpy(np.stack([build_resizer("clean")(i) for i in images])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = peer(resized).numpy()
    extractor = InceptionExtractor.open(settings_for(weights))
    for batch in (2, 5):
        extractor.batch = batch
        np.testing.assert_allclose(extractor.extract(images), expected, rtol=1e-4, atol=1e-5)


def test_wrong_or_missing_weights_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        InceptionExtractor.open(InceptionSettings(path=str(tmp_path / "none.pt"), sha256="0" * 64))
    with pytest.raises(UserError, match="expected 0000"):
        InceptionExtractor.open(InceptionSettings(path=str(weights), sha256="0" * 64))
    other = tmp_path / "other.pt"
    torch.jit.script(nn.ReLU()).save(str(other))
    with pytest.raises(UserError, match="not clean-fid's TorchScript"):
        InceptionExtractor.open(settings_for(other))
