"""A decoder that reads the states of the frozen CLIP: trained, loaded and sampled from."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.pipeline.config import parse_config
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from embed.clip.model import load_clip
from training.launch import train
from training.loop.precision import plain_attention
from training.networks.text import FrozenStates
from training.sampling.batches import captions_of
from training.settings import DecoderSettings
from training.systems import SamplingOptions, load_system
from training.tables import TextEncoderSettings
from training.tasks.decoder import decoder_stage, require_text_width

OPTIONS = SamplingOptions(guidance_prior=1.5, guidance_decoder=2.0, steps_prior=3, steps_decoder=3, batch=4)
CAPTIONS = [
    "a red square",
    "a small green circle on a white background",
    "two blue triangles",
    "a star",
    "a red square",
]


@pytest.fixture(scope="module")
def run(embedded_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("frozen")
    shutil.copytree(embedded_run.folder, folder / "t", ignore=shutil.ignore_patterns("models", "config.toml", "*.lock"))
    tables = embedded_run.config.to_dict()
    tables["run"]["folder"] = str(folder)
    tables["decoder"]["architecture"]["text"] = {"start": "clip", "width": 16, "depth": 1, "heads": 2}
    tables["systems"] = {"captions-only": {"decoder": "decoder"}}
    run = Run.open(parse_config(tables, "test"))
    train(run, decoder_stage(run))
    return run


def test_its_weights_hold_no_text_transformer(run: Run) -> None:
    names = {name for name in load_file(run.model("decoder").folder / "model.safetensors") if "text_encoder" in name}
    assert names == {"text_encoder.padding_embedding", "text_encoder.null_embedding"}


def test_an_image_does_not_depend_on_its_company(run: Run) -> None:
    system = load_system(run, "captions-only", "cpu")
    assert isinstance(system.decoder.network.text_encoder, FrozenStates)
    together = system.generate(CAPTIONS, [1, 2, 3, 4, 5], OPTIONS)
    assert np.array_equal(together[2:3], system.generate(CAPTIONS[2:3], [3], OPTIONS))
    assert np.array_equal(together, system.generate(CAPTIONS[::-1], [5, 4, 3, 2, 1], OPTIONS)[::-1])


def test_states_are_the_clips_own_and_each_caption_is_encoded_alone(run: Run) -> None:
    clip = load_clip(run)
    ids = clip.tokenize(CAPTIONS)
    captions = captions_of(clip, ids, with_states=True)
    assert captions.states is not None and captions_of(clip, ids).states is None
    for i in range(len(CAPTIONS)):
        with plain_attention(clip.device):
            assert torch.equal(captions.states[i], clip.token_states(ids[i : i + 1])[0])
    assert captions.counts.tolist() == clip.token_counts(ids).tolist()


def test_a_text_tower_of_another_width_is_refused(run: Run) -> None:
    settings = run.config[DecoderSettings]
    require_text_width(settings, load_clip(run))
    text = TextEncoderSettings(start="clip", width=32, depth=1, heads=2)
    architecture = settings.architecture.model_copy(update={"text": text})
    with pytest.raises(UserError, match=r"whose width is 16; decoder\.architecture\.text\.width = 32"):
        require_text_width(settings.model_copy(update={"architecture": architecture}), load_clip(run))
