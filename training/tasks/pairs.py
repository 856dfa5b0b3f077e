"""What the trainings on the embedding cache share: its train and val pairs, and the CLIP beside which they train."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.pipeline.stage import PartSpec
from embed.clip.model import Clip
from embed.reading.reader import EmbeddingReader, PairBatch
from training.checkpoints import Description
from training.loop.precision import plain_attention
from training.networks.conditions import Captions, ClipShape
from training.settings import DecoderSettings, PriorSettings
from training.tasks.part import Work


@dataclass(frozen=True)
class TrainingPairs:
    """Pairs that the view `train` keeps, of the splits `train` and `val`, and the run's CLIP."""

    clip: Clip
    train: EmbeddingReader
    val: EmbeddingReader

    @property
    def shape(self) -> ClipShape:
        return ClipShape(self.clip.embed_dim, self.clip.context_length, self.clip.vocab_size)


def read_pairs(work: Work, device: torch.device) -> TrainingPairs:
    """What a part is trained on, the CLIP on `device`. Raises UserError for a cache of another CLIP, and for a split without pairs."""
    assert work.clip is not None, f"{work.name} is not trained beside a CLIP"
    clip, view = work.clip.load(device=str(device)), work.run.view("train")
    train, val = (EmbeddingReader(work.run.embeddings, view, split, clip.identity) for split in ("train", "val"))
    return TrainingPairs(clip, train, val)


def described(kind: str, settings: PriorSettings | DecoderSettings, clip: ClipShape, spec: PartSpec) -> Description:
    """What a model says of itself, by the settings it was trained with and what it was made from."""
    stated = settings.model_dump(mode="json", include={"architecture", "diffusion"})
    return Description(kind, stated["architecture"], stated["diffusion"], clip, spec.inputs, settings.optimiser)


def captions_in(pairs: PairBatch, clip: Clip | None = None) -> Captions:
    """The captions of pairs of the cache; with the states of `clip`'s text tower where it is given, by the attention kernel of
    trainings also on a thread that reads ahead."""
    if clip is None:
        return Captions(pairs.token_ids, pairs.n_tokens)
    with plain_attention(clip.device):
        return Captions(pairs.token_ids, pairs.n_tokens, clip.token_states(pairs.token_ids))


def spread(n: int, count: int) -> NDArray[np.int64]:
    """At most `count` of n rows, evenly spaced and in order."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(np.int64))
