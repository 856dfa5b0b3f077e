"""The attribute classifier: a small convolutional network trained on real scenes, a judge that knows nothing of the CLIP.

Heads over one 64-dimensional feature, which is also the feature of `fd[attributes]`:
- of the scene (background, texture): one value each;
- of objects (shape, colour, size, position): for each value, is there an object that has it? With one object the largest
  logit is its value. With two, the two largest are their colours, since two objects of a scene never share a colour; their
  shapes, sizes and positions, which they may share or which no word of the caption binds, are not judged.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from data.pipeline.artifacts import canonical_json
from data.pipeline.progress import progress
from data.pipeline.run import Run
from data.pipeline.stage import Input, PartSpec, Stage
from embed.encoding.threads import one_thread
from eval.extract.extractor import Arrays, FeatureSpace
from eval.real_images import RealSource, read_pixels
from eval.settings import AttributeSettings, EvalSettings

FEATURES = 64
FEATURE, LOGITS = "feature", "logits/"
CLASSIFIER = "eval/attributes"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"


@dataclass(frozen=True)
class Vocabulary:
    """The values of each attribute, ascending, as the training scenes have them."""

    scene: Mapping[str, Sequence[str]]
    objects: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, truths: Sequence[Mapping[str, Any]]) -> "Vocabulary":
        """Every attribute and value that occurs in `truths` (form: {"objects": [{...}], "background": ..., ...})."""
        scene: dict[str, set[str]] = {}
        objects: dict[str, set[str]] = {}
        for truth in truths:
            for name in truth.keys() - {"objects"}:
                scene.setdefault(name, set()).add(truth[name])
            for thing in truth["objects"]:
                for name, value in thing.items():
                    objects.setdefault(name, set()).add(value)
        return cls(*({name: sorted(values) for name, values in sorted(table.items())} for table in (scene, objects)))

    @property
    def heads(self) -> dict[str, Sequence[str]]:
        return {**self.scene, **self.objects}

    def targets(self, truths: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """head -> float32 (n, values): 1 where the scene, or one of its objects, has the value."""
        found = {name: torch.zeros(len(truths), len(values)) for name, values in self.heads.items()}
        for i, truth in enumerate(truths):
            for name, values in self.scene.items():
                found[name][i, values.index(truth[name])] = 1
            for name, values in self.objects.items():
                for thing in truth["objects"]:
                    found[name][i, values.index(thing[name])] = 1
        return found


class Network(nn.Module):
    """Pixels in [-1, 1] (n, 3, s, s), any side s >= 8 -> features (n, FEATURES); linear heads on top."""

    def __init__(self, heads: Mapping[str, int], width: int) -> None:
        super().__init__()
        w = width
        self.body = nn.Sequential(
            _block(3, w), _block(w, w), nn.MaxPool2d(2), _block(w, 2 * w), _block(2 * w, 2 * w), nn.AdaptiveAvgPool2d(4),
            nn.Flatten(), nn.Linear(2 * w * 16, FEATURES), nn.GELU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, n) for name, n in heads.items()})

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.body(x)
        return features, {name: head(features) for name, head in self.heads.items()}


def _block(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.GroupNorm(4, c_out), nn.GELU())


@dataclass(frozen=True)
class AttributeClassifier:
    """A trained network with its vocabulary, for images of `side` pixels."""

    network: Network
    vocabulary: Vocabulary
    side: int

    @torch.inference_mode()
    def run(
        self, images: NDArray[np.uint8], batch: int = 256
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """uint8 (n, side, side, 3) -> features (n, FEATURES) and logits of each head (n, values)."""
        assert images.shape[1:] == (self.side, self.side, 3), f"made for {self.side} px, got {images.shape}"
        parts = [self.network(to_input(images[i : i + batch])) for i in range(0, len(images), batch)]
        logits = {name: torch.cat([p[1][name] for p in parts]).numpy() for name in self.vocabulary.heads}
        return torch.cat([p[0] for p in parts]).numpy(), logits


@dataclass(frozen=True)
class AttributeExtractor:
    """The classifier in `folder` (whose artifact has `digest`): its 64-dimensional `feature`, and `logits/<head>` of every head."""

    folder: Path
    digest: str
    name = "attributes"

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (Input(CLASSIFIER, self.digest),)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    @property
    def spaces(self) -> tuple[FeatureSpace, ...]:
        return (FeatureSpace(FEATURE, self.name, "fd"),)

    def extract(self, images: NDArray[np.uint8]) -> Arrays:
        features, logits = _loaded(self.folder, self.digest).run(images)
        return {FEATURE: features} | {f"{LOGITS}{name}": values for name, values in logits.items()}


@lru_cache(maxsize=1)
def _loaded(folder: Path, digest: str) -> AttributeClassifier:
    """Once in each process, and anew for another `digest`."""
    return load_classifier(folder)


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def train_classifier(
    images: NDArray[np.uint8], truths: Sequence[Mapping[str, Any]], settings: AttributeSettings, seed: int
) -> tuple[Network, Vocabulary]:
    """Fit to real scenes: uint8 (n, s, s, 3) and their attributes. The same seed gives the same weights on one machine."""
    vocabulary = Vocabulary.of(truths)
    targets, generator = vocabulary.targets(truths), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network({name: len(values) for name, values in vocabulary.heads.items()}, settings.width)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.lr, total_steps=settings.steps)
    pixels = to_input(images)
    with progress("attribute classifier", settings.steps, "steps") as bar:
        for _ in range(settings.steps):
            rows = torch.randint(len(pixels), (settings.batch,), generator=generator)
            _, logits = network(augment(pixels[rows], generator))
            loss = _loss(logits, {name: t[rows] for name, t in targets.items()}, vocabulary)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            bar.advance(note=f"loss {loss.item():.3f}")
    return network.eval(), vocabulary


def _loss(logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], vocabulary: Vocabulary) -> Tensor:
    scene = [F.cross_entropy(logits[name], targets[name].argmax(dim=1)) for name in vocabulary.scene]
    objects = [F.binary_cross_entropy_with_logits(logits[name], targets[name]) * 2 for name in vocabulary.objects]
    return torch.stack(scene + objects).sum()


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts by a pixel, blur, contrast and noise, each drawn for every image: generated images are less crisp than drawn
    ones, and a judge that only knows crisp edges would mark them down for that. (n, 3, s, s) -> the same shape."""
    n, _, s, _ = x.shape
    dy, dx = (torch.randint(3, (n, 1), generator=generator) + torch.arange(s) for _ in range(2))
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = padded[torch.arange(n)[:, None, None], :, dy[:, :, None], dx[:, None, :]].permute(0, 3, 1, 2)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share, gain, sigma = (torch.rand(n, 1, 1, 1, generator=generator) for _ in range(3))
    x = torch.lerp(x, blurred, 0.7 * share * (share > 0.4)) * (0.9 + 0.2 * gain)
    return x + 0.15 * sigma * torch.randn(x.shape, generator=generator)


def save_classifier(
    folder: Path, network: Network, vocabulary: Vocabulary, side: int, settings: AttributeSettings
) -> None:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / WEIGHTS_FILE)
    config = {"scene": vocabulary.scene, "objects": vocabulary.objects, "side": side, "width": settings.width}
    (folder / CONFIG_FILE).write_bytes(canonical_json(config))


def read_vocabulary(folder: Path) -> Vocabulary:
    """What a saved classifier's heads are about."""
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    return Vocabulary(config["scene"], config["objects"])


def load_classifier(folder: Path) -> AttributeClassifier:
    config, vocabulary = json.loads((folder / CONFIG_FILE).read_bytes()), read_vocabulary(folder)
    network = Network({name: len(values) for name, values in vocabulary.heads.items()}, config["width"])
    network.load_state_dict(load_file(folder / WEIGHTS_FILE), strict=True)
    return AttributeClassifier(network.eval().requires_grad_(False), vocabulary, config["side"])


@dataclass(frozen=True)
class ClassifierWork:
    """The attribute classifier's training."""

    real: RealSource
    settings: AttributeSettings
    side: int
    seed: int


def classifier_stage(run: Run, side: int) -> Stage:
    """The run's attribute classifier, trained on real training scenes of `side` pixels, one part."""
    real, settings = RealSource.of(run), run.config[EvalSettings].attributes
    chosen = settings.model_dump(mode="json") | {"side": side, "seed": run.seed}
    part = PartSpec("model", real.inputs, ClassifierWork(real, settings, side, run.seed))
    return Stage("attribute-classifier", 1, run.folder / CLASSIFIER, chosen, [part], train_attributes, unit="models")


def train_attributes(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Train and save the classifier, on one torch thread."""
    work: ClassifierWork = spec.work
    real = work.real.open()
    keys = real.train(work.seed, "attributes")[: work.settings.scenes]
    pixels, truths = read_pixels(real.reader, keys, work.side), [real.truth(key) for key in keys]
    with one_thread():
        network, vocabulary = train_classifier(pixels, truths, work.settings, work.seed)
    save_classifier(attempt, network, vocabulary, work.side, work.settings)
    return {"scenes": len(keys)}
