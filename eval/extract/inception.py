"""FID's Inception network as an extractor: clean-fid's resizer and clean-fid's wrapper around the published TorchScript file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from numpy.typing import NDArray

from data.pipeline.artifacts import sha256_file
from data.pipeline.errors import Code, UserError
from data.pipeline.stage import Input
from eval.extract.extractor import Arrays, FeatureSpace
from eval.settings import InceptionSettings

POOL = "pool3"
BATCH = 32


@dataclass(frozen=True)
class InceptionExtractor:
    """The 2,048 values of Inception's last pooling layer (`pool3`), on which FID is defined."""

    weights: Path
    sha256: str
    batch: int = BATCH
    name = "inception"

    @classmethod
    def open(cls, settings: InceptionSettings) -> "InceptionExtractor":
        """Raises UserError when the file is missing or differs from its sha256."""
        # Absolute, because workers may have another working directory.
        path = Path(settings.path).absolute()
        if not path.is_file():
            raise UserError(
                f"eval.inception.path: there is no file {path}; give inception-2015-12-05.pt, or leave eval.inception out",
                Code.MISSING,
            )
        _refuse_other(path, settings.sha256)
        return cls(path, settings.sha256)

    @property
    def inputs(self) -> tuple[Input, ...]:
        return ()

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"sha256": self.sha256}

    @property
    def spaces(self) -> tuple[FeatureSpace, ...]:
        return (FeatureSpace(POOL, self.name, "fid"),)

    @torch.inference_mode()
    def extract(self, images: NDArray[np.uint8]) -> Arrays:
        network, resize = _loaded(self.weights, self.sha256), build_resizer("clean")
        found = []
        for start in range(0, len(images), self.batch):
            resized = np.stack([resize(image) for image in images[start : start + self.batch]])
            found.append(network(torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()).float().numpy())
        return {POOL: np.concatenate(found)}


def _refuse_other(path: Path, sha256: str) -> None:
    found = sha256_file(path)
    if found != sha256:
        raise UserError(
            f"eval.inception: {path} has sha256 {found}, expected {sha256}; fetch it again or correct the config",
            Code.INPUT_CHANGED,
        )


@lru_cache(maxsize=1)
def _loaded(path: Path, sha256: str) -> Any:
    """Once in each process. TorchScript is code: it is loaded only where its checksum is the config's."""
    _refuse_other(path, sha256)
    try:
        return InceptionV3W(str(path.parent), download=False).eval()
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"eval.inception: {path} is not clean-fid's TorchScript Inception: {str(error)[:200]}", Code.FOREIGN
        ) from None
