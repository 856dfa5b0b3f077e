"""One small run with every artifact of this room, made once through the real stages."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from tests.conftest import make_config

OPTIMISER = {"steps": 3, "batch": 8, "warmup": 1, "log_every": 1, "precision": "fp32"}
SECTIONS: dict[str, Any] = {
    "clip": {"source": "run"},
    "clip_training": {
        "architecture": {
            "image_size": 32, "embed_dim": 16, "width": 8, "head_width": 8, "text_width": 16, "text_heads": 2, "text_layers": 1,
        },
        "optimiser": OPTIMISER,
    },
    "prior": {"architecture": {"width": 16, "depth": 1, "heads": 2}, "optimiser": OPTIMISER, "validation_samples": 8},
    "decoder": {
        "architecture": {
            "side": 8, "channels": [8, 16], "head_channels": 8, "norm_groups": 4, "text": {"width": 16, "depth": 1, "heads": 2},
        },
        "optimiser": OPTIMISER, "validation_samples": 8,
    },
}  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny networks lose more by waiting for a second thread than they gain; and bits are compared, which depend on the count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def embedded_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Dataset, views, CLIP and cache of thirty scenes."""
    from data.dataset.build import build_dataset
    from data.scores.basic import build_basic_scores
    from data.scores.duplicates import build_duplicates
    from data.views.build import build_base_view, build_train_view
    from embed.encoding.stage import build_embeddings
    from training.launch import train
    from training.tasks.clip import clip_stage

    run = Run.open(make_config(tmp_path_factory.mktemp("run"), **SECTIONS))
    build_dataset(run, InProcess())
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())
    train(run, clip_stage(run))
    build_embeddings(run, InProcess())
    build_train_view(run, InProcess())
    return run


@pytest.fixture(scope="session")
def trained_run(embedded_run: Run) -> Run:
    """`embedded_run` with prior, decoder and GLIDE baseline."""
    from training.launch import train
    from training.tasks.decoder import decoder_stage, glide_stage
    from training.tasks.prior import prior_stage

    for stage in (prior_stage, decoder_stage, glide_stage):
        train(embedded_run, stage(embedded_run))
    return embedded_run
