"""FID's Inception network as an extractor, with clean-fid's resizing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.pipeline.artifacts import sha256_file
from data.pipeline.errors import UserError
from eval.settings import InceptionSettings

INCEPTION_SIDE = 299


@dataclass
class InceptionExtractor:
    """FID's Inception: TorchScript weights with clean-fid's interface, and clean-fid's resizing and scaling."""

    layers: Any
    identity: str
    name: str = "inception"
    metric: str = "fid"
    batch: int = 32

    @classmethod
    def open(cls, settings: InceptionSettings) -> "InceptionExtractor":
        """Raises UserError when the file is missing, differs from its sha256, or has no `layers`."""
        path = Path(settings.path)
        if not path.is_file():
            raise UserError(
                f"eval.inception.path: there is no file {path}; give inception-2015-12-05.pt, or leave eval.inception out"
            )
        found = sha256_file(path)
        if found != settings.sha256:
            raise UserError(
                f"eval.inception: {path} has sha256 {found}, expected {settings.sha256}; fetch it again or correct the config"
            )
        try:
            # TorchScript is code: the checksum above is what makes it safe to load.
            layers = torch.jit.load(str(path), map_location="cpu").eval().layers
        except (RuntimeError, AttributeError) as error:
            raise UserError(
                f"eval.inception: {path} is not clean-fid's TorchScript Inception: {str(error)[:200]}"
            ) from None
        return cls(layers, found)

    @torch.inference_mode()
    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(images), self.batch):
            resized = np.stack([resize_for_inception(image) for image in images[start : start + self.batch]])
            x = torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()
            found.append(self.layers((x - 128) / 128).flatten(1).float().numpy())
        return np.concatenate(found)


def resize_for_inception(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (h, w, 3) -> float32 (299, 299, 3) in [0, 255]: each channel by Pillow's bicubic in float, never rounded to bytes
    (Parmar et al. 2022, clean-fid's mode `clean`)."""
    channels = [
        Image.fromarray(image[:, :, c].astype(np.float32)).resize(
            (INCEPTION_SIDE, INCEPTION_SIDE), Image.Resampling.BICUBIC
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(c) for c in channels], axis=2).clip(0, 255)
