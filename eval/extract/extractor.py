"""Feature extractors: what turns images into the vectors that metrics are computed from.

Each does its own resizing from the images' own side, so real and generated images of one side are treated alike.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eval.extract.attributes import AttributeClassifier

ATTRIBUTES = "attributes"


class Extractor(Protocol):
    """`name` says which (a folder name), `metric` how a Frechet distance on it is called, `identity` decides its features."""

    name: str
    metric: str
    identity: str

    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (n, h, w, 3) -> float32 (n, d)."""
        ...


class AttributeExtractor:
    """The classifier's feature, and behind it the logits of every head: `split` takes them apart."""

    def __init__(self, classifier: AttributeClassifier) -> None:
        self.classifier = classifier
        self.name, self.identity, self.metric = ATTRIBUTES, classifier.identity, f"fd[{ATTRIBUTES}]"

    def extract(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        features, logits = self.classifier.run(images)
        return np.concatenate([features, *(logits[name] for name in self.classifier.vocabulary.heads)], axis=1)

    def split(self, extracted: NDArray[np.float32]) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """(n, d) as `extract` gives it -> features (n, f), logits of each head (n, values)."""
        heads = self.classifier.vocabulary.heads
        sizes = [len(values) for values in heads.values()]
        feature, *logits = np.split(extracted, np.cumsum([extracted.shape[1] - sum(sizes), *sizes[:-1]]), axis=1)
        return feature, dict(zip(heads, logits, strict=True))
