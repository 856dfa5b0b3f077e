"""Inception's path on random weights of clean-fid's interface."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from PIL import Image
from pydantic import ValidationError
from torch import nn

from data.pipeline.errors import Code, UserError
from eval.extract.inception import InceptionExtractor
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
def test_resizing_is_bicubic_in_float_by_channel(shape):
    """What clean-fid's mode `clean` stands for, written once more: an update of the library that changed it would be seen."""
    image = np.random.default_rng(1).integers(0, 256, size=shape, dtype=np.uint8)
    channels = [
        Image.fromarray(image[:, :, c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
        for c in range(3)
    ]
    expected = np.stack([np.asarray(c) for c in channels], axis=2).clip(0, 255)
    np.testing.assert_array_equal(build_resizer("clean")(image), expected)


def test_features_are_the_networks_for_any_batch_size(weights, images):
    network = torch.jit.load(str(weights)).eval()
    resized = torch.from_numpy(np.stack([build_resizer("clean")(i) for i in images])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = network(resized).numpy()
    extractor = InceptionExtractor.open(settings_for(weights))
    assert [(space.family, space.array) for space in extractor.spaces] == [("fid", "pool3")]
    for batch in (2, 5):
        found = replace(pickle.loads(pickle.dumps(extractor)), batch=batch).extract(images)  # noqa: S301
        assert found["pool3"].shape == (5, 2048)
        np.testing.assert_allclose(found["pool3"], expected, rtol=1e-4, atol=1e-5)


def test_wrong_or_missing_weights_are_refused(weights, tmp_path):
    path = tmp_path / "inception-2015-12-05.pt"
    with pytest.raises(UserError) as error:
        InceptionExtractor.open(InceptionSettings(path=str(path), sha256="0" * 64))
    assert error.value.code == Code.MISSING
    with pytest.raises(UserError, match="expected 0000") as error:
        InceptionExtractor.open(InceptionSettings(path=str(weights), sha256="0" * 64))
    assert error.value.code == Code.INPUT_CHANGED
    torch.jit.script(nn.ReLU()).save(str(path))
    with pytest.raises(UserError, match="not clean-fid's TorchScript"):
        InceptionExtractor.open(settings_for(path)).extract(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValidationError):
        InceptionSettings(path=str(tmp_path / "other.pt"), sha256="0" * 64)
