"""Presets, defaults and refusals of the three sections."""

import json
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from data.pipeline.config import load_config, parse_config
from data.pipeline.errors import Code, UserError
from training.settings import ClipTrainingSettings, DecoderSettings, PriorSettings, SystemsSettings
from training.tables import OptimiserSettings

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
        (
            "clip_training",
            {"architecture": {"text_heads": 3}},
            "text_width must be a multiple of text_heads, got 128 and 3",
        ),
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


def test_systems_are_rows_in_the_order_of_the_config() -> None:
    default = parse_config(dict(RUN), "test")[SystemsSettings]
    assert list(default.rows) == ["unclip", "glide"] and default.models() == ("prior", "decoder", "glide")
    given = {"b": {"decoder": "glide"}, "a-1": {"prior": "prior", "decoder": "decoder"}}
    config = parse_config({**RUN, "systems": given}, "test")
    assert config.to_dict()["systems"] == given
    assert list(config[SystemsSettings].rows) == ["b", "a-1"]
    assert config[SystemsSettings].rows["b"].prior is None and config.at("systems.a-1").prior == "prior"
    assert pickle.loads(pickle.dumps(config[SystemsSettings])) == config[SystemsSettings]  # noqa: S301
    again = parse_config(json.loads(json.dumps(config.to_dict())), "test")
    assert again[SystemsSettings] == config[SystemsSettings]


def test_a_row_can_be_overridden_on_the_command_line(tmp_path: Path) -> None:
    for file in ("demo", "smoke"):
        config = load_config(f"configs/{file}.toml", ["systems.glide.decoder=decoder"])
        assert config[SystemsSettings].rows["glide"].model_dump() == {"prior": None, "decoder": "decoder"}
        assert list(config[SystemsSettings].rows) == ["unclip", "glide"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"unclip": {"decoder": "glide", "decodr": "x"}}, "unknown key systems.unclip.decodr"),
        ({"unclip": {"prior": "prior"}}, "systems.unclip.decoder is required"),
        ({"unclip": {"decoder": 3}}, "systems.unclip.decoder"),
        ({"unclip": "decoder"}, "systems.unclip"),
        ({"Un Clip": {"decoder": "glide"}}, "lower-case letters"),
        ({"x": {"decoder": "upsampler"}}, "systems.x.decoder = 'upsampler' is no decoder that can be trained; known: decoder, glide"),
        ({"x": {"prior": "prior", "decoder": "glide"}}, r"systems\.x: glide draws from captions alone, what prior gives would be thrown"),
        ({"x": {"prior": "glide", "decoder": "decoder"}}, "systems.x.prior = 'glide' is no prior that can be trained; known: prior"),
    ],
)  # fmt: skip
def test_rows_that_name_nothing_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse_config({**RUN, "systems": given}, "test")
    assert error.value.code == Code.USAGE


def test_a_decoder_larger_than_the_stored_images_is_refused_where_it_is_trained() -> None:
    tables = {**RUN, "decoder": {"architecture": {"side": 64}}}
    small = {"dataset": {"scenes": {"samples": 1}, "image": {"size": 32}}}
    with pytest.raises(UserError, match=r"decoder\.architecture\.side = 64.*dataset\.image\.size = 32"):
        parse_config({**tables, **small}, "test")
    whole = {"dataset": {"scenes": {"samples": 1}, "image": {"size": 32, "mode": "no"}}}
    parse_config({**tables, **whole}, "test")
    folder = {"dataset": {"folder": {"path": "x"}, "image": {"size": 32, "mode": "no"}}}
    parse_config({**tables, **folder}, "test")  # sizes are known when the images are


@pytest.mark.parametrize("mode", ["center_crop", "border", "keep_ratio", "keep_ratio_largest", "no"])
def test_a_decoder_larger_than_the_scenes_is_refused_where_nothing_enlarges_them(mode: str) -> None:
    dataset = {"scenes": {"samples": 1, "side": 64}, "image": {"size": 256, "mode": mode}}
    tables = {**RUN, "dataset": dataset, "decoder": {"architecture": {"side": 128}}}
    if mode in ("center_crop", "border"):
        parse_config(tables, "test")
        return
    with pytest.raises(
        UserError, match=r"decoder\.architecture\.side = 128, but scenes have dataset\.scenes\.side = 64"
    ):
        parse_config(tables, "test")
    parse_config({**tables, "decoder": {"architecture": {"side": 64}}}, "test")


@pytest.mark.parametrize(
    "source", [{"scenes": {"samples": 1}}, {"folder": {"path": "x"}}, {"table": {"path": "x", "url": "u", "caption": "c"}}]
)  # fmt: skip
def test_trainings_without_a_split_to_validate_on_are_refused(source: dict[str, object]) -> None:
    dataset = {"dataset": {**source, "split": {"val": 0.0, "test": 0.3}}}
    for told in (
        {"prior": {"drop": 0.2}},
        {"clip_training": {"validation_samples": 9}},
        {"systems": {"x": {"decoder": "glide"}}},
    ):
        with pytest.raises(UserError, match=r"dataset\.split\.val = 0"):
            parse_config({**RUN, **dataset, **told}, "test")
    alone = parse_config(
        {**RUN, **dataset}, "test"
    )  # a dataset alone may have no such split, also when it is read again
    parse_config(json.loads(json.dumps(alone.to_dict())), "test")


def test_splits_that_a_source_brings_along_are_its_own() -> None:
    tables = {**RUN, "prior": {"drop": 0.2}}
    drawn = {"split": {"val": 0.0}}
    official = {"train": "a.json", "val": "b.json"}
    for source in ({"coco": {"annotations": official}}, {"webdataset": {"path": "x"}}):
        parse_config({**tables, "dataset": {**source, **drawn}}, "test")
    with pytest.raises(UserError, match=r"dataset\.coco\.annotations has no split val"):
        parse_config({**tables, "dataset": {"coco": {"annotations": {"train": "a.json"}}}}, "test")


def test_frozen_states_need_the_width_of_the_clip_that_is_trained() -> None:
    text = {"start": "clip", "width": 128, "depth": 2, "heads": 4}
    for unused in ({}, {"depth": 3}, {"heads": 2}):
        parse_config({**RUN, "decoder": {"architecture": {"text": {**text, **unused}}}}, "test")
    with pytest.raises(UserError, match=r"whose width .* is 128; decoder\.architecture\.text\.width = 96"):
        parse_config({**RUN, "decoder": {"architecture": {"text": {**text, "width": 96}}}}, "test")
    # Another CLIP's shape is known when it is loaded.
    elsewhere = {
        "clip": {"source": "checkpoint", "path": "x"},
        "decoder": {"architecture": {"text": {**text, "width": 96}}},
    }
    parse_config({**RUN, **elsewhere}, "test")
