"""Presets, defaults and refusals of the three sections."""

import json

import pytest
from pydantic import ValidationError

from data.pipeline.config import parse_config
from data.pipeline.errors import UserError
from training.settings import ClipTrainingSettings, DecoderSettings, OptimiserSettings, PriorSettings

RUN = {"run": {"name": "x"}, "dataset": {"scenes": {"samples": 1}}}


def test_sections_may_be_absent_and_survive_a_round_trip() -> None:
    config = parse_config(dict(RUN), "test")
    assert config[PriorSettings].diffusion.prediction == "x0"
    again = parse_config(json.loads(json.dumps(config.to_dict())), "test")
    for model in (ClipTrainingSettings, PriorSettings, DecoderSettings):
        assert again[model] == config[model]


def test_paper_preset_is_table_3() -> None:
    prior = parse_config({**RUN, "prior": {"preset": "paper"}}, "test")[PriorSettings]
    decoder = parse_config({**RUN, "decoder": {"preset": "paper"}}, "test")[DecoderSettings]
    o, a = prior.optimiser, prior.architecture
    assert (a.width, a.depth, a.heads) == (2048, 24, 32)
    assert (o.weight_decay, o.batch, o.steps, o.lr, o.beta1, o.beta2, o.eps, o.ema) == (
        0.06,
        4096,
        600_000,
        1.1e-4,
        0.9,
        0.96,
        1e-6,
        0.9999,
    )
    o, d = decoder.optimiser, decoder.architecture
    assert (d.side, d.channels, d.depth, d.head_channels, d.dropout) == (64, (512, 1024, 1536, 2048), 3, 64, 0.1)
    assert (d.text.width, d.text.depth, d.text.heads) == (2048, 24, 32)
    assert (o.batch, o.steps, o.lr, o.beta1, o.beta2, o.eps, o.ema) == (2048, 800_000, 1.2e-4, 0.9, 0.999, 1e-8, 0.9999)
    assert (prior.diffusion.schedule, decoder.diffusion.schedule, decoder.diffusion.steps) == ("cosine", "cosine", 1000)
    assert (prior.drop, decoder.drop_clip, decoder.drop_caption) == (0.1, 0.1, 0.5)


def test_keys_override_their_preset_one_by_one() -> None:
    given = {"preset": "paper", "architecture": {"depth": 1, "channels": [64, 128]}, "optimiser": {"steps": 7}}
    decoder = parse_config({**RUN, "decoder": given}, "test")[DecoderSettings]
    assert (decoder.architecture.depth, decoder.architecture.channels, decoder.architecture.norm_groups) == (
        1,
        (64, 128),
        32,
    )
    assert (decoder.optimiser.steps, decoder.optimiser.batch) == (7, 2048)


@pytest.mark.parametrize(
    ("section", "given", "said"),
    [
        ("decoder", {"preset": "huge"}, "decoder.preset"),
        ("decoder", {"architecture": {"chanels": [8]}}, "did you mean channels"),
        ("decoder", {"architecture": {"channels": "32"}}, "decoder.architecture.channels"),
        ("decoder", {"architecture": {"side": 18}}, "halve side = 18"),
        ("decoder", {"architecture": {"channels": [8, 20]}}, "norm_groups"),
        ("prior", {"architecture": {"width": 30}}, "2 * heads"),
        ("prior", {"optimiser": {"lr": "fast"}}, "prior.optimiser.lr"),
        ("clip_training", {"optimiser": {"batch": 10, "accumulation": 3}}, "multiple of accumulation"),
    ],
)
def test_refusals_name_the_key(section: str, given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said.replace("*", r"\*")):
        parse_config({**RUN, section: given}, "test")


def test_checkpoint_interval_does_not_shape_the_model() -> None:
    assert PriorSettings(checkpoint_seconds=1).shaping() == PriorSettings(checkpoint_seconds=2).shaping()
    with pytest.raises(ValidationError):
        OptimiserSettings(steps=0)
