"""The CLIP format: identity, strict loading, and a shrunk vocabulary that changes no segmentation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file

from data.config import parse_config
from data.errors import UserError
from data.run import Run
from embed.clip import BPE_FILE, CONFIG_FILE, WEIGHTS_FILE, load_clip, load_clip_folder, shrink_bpe
from tests.conftest import save_tiny_clip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_clip(tmp_path / "clip")


def test_identity_covers_weights_preprocessing_and_tokenizer(folder: Path, tmp_path: Path) -> None:
    first = load_clip_folder(folder).identity
    assert load_clip_folder(save_tiny_clip(tmp_path / "same")).identity == first
    assert load_clip_folder(save_tiny_clip(tmp_path / "seed", seed=1)).identity != first
    weights = load_file(folder / WEIGHTS_FILE)
    weights["ln_final.bias"] += 1e-6
    save_file(weights, folder / WEIGHTS_FILE)
    second = load_clip_folder(folder).identity
    content = json.loads((folder / CONFIG_FILE).read_text())
    content["preprocess_cfg"]["interpolation"] = "bilinear"
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    assert len({first, second, load_clip_folder(folder).identity}) == 3


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    removed = weights.pop("ln_final.bias")
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"(?s)does not fit .*ln_final.bias"):
        load_clip_folder(folder)
    save_file(weights | {"ln_final.bias": removed[:-1].contiguous()}, folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match="does not fit"):
        load_clip_folder(folder)
    (folder / WEIGHTS_FILE).write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="does not fit"):
        load_clip_folder(folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="is missing"):
        load_clip_folder(folder)


def test_a_shrunk_vocabulary_keeps_the_segmentation_of_its_captions(tmp_path: Path) -> None:
    captions = ["a photo of a Corgi's playful puppies", "naïve café, 12 o'clock", "日本語", "a red cube"]
    size = shrink_bpe(captions, tmp_path / "bpe.txt.gz")
    small, full = SimpleTokenizer(bpe_path=str(tmp_path / "bpe.txt.gz")), SimpleTokenizer()
    assert size == small.vocab_size < 700
    for caption in captions:
        assert [small.decoder[i] for i in small.encode(caption)] == [full.decoder[i] for i in full.encode(caption)]
    assert small.eot_token_id == size - 1  # open_clip pools at the largest id
    assert small.encode("unseen zebra")  # falls back to smaller pieces


def test_a_long_caption_keeps_its_end_of_text(folder: Path) -> None:
    clip = load_clip_folder(folder)
    ids = clip.tokenize(["red " * 100, "red"])
    assert ids[0, -1] == clip.vocab_size - 1
    assert clip.token_counts(ids).tolist() == [32, 3]


def test_token_states_pool_to_the_text_embedding(folder: Path) -> None:
    clip = load_clip_folder(folder)
    ids = clip.tokenize(["a red cross on a white background", "a ring"])
    states = clip.token_states(ids)
    assert states.shape == (2, clip.context_length, clip.text_width)
    pooled = states[torch.arange(2), ids.argmax(1)] @ clip.model.text_projection
    assert torch.allclose(pooled, clip.encode_ids(ids), atol=1e-5)


def test_encoding_does_not_depend_on_the_batch(folder: Path) -> None:
    clip = load_clip_folder(folder)
    images = np.random.default_rng(0).integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)
    whole = clip.encode_images(images)
    single = torch.cat([clip.encode_images(images[i : i + 1]) for i in range(9)])
    assert torch.allclose(whole, single, atol=1e-5)
    assert torch.allclose(whole.norm(dim=1), torch.ones(9))
    assert clip.encode_images(images[:0]).shape == (0, 32)


def named(tmp_path: Path, **clip: str) -> Run:
    return Run(
        parse_config(
            {"run": {"name": "x", "folder": str(tmp_path)}, "dataset": {"scenes": {"samples": 1}}, "clip": clip},
            "c.toml",
        )
    )


def test_a_quickgelu_mismatch_is_an_error_not_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def create(*_: object, **__: object) -> None:
        warnings.warn(
            "QuickGELU mismatch between final model config (quick_gelu=False) and pretrained tag 'openai'.",
            UserWarning,
            stacklevel=1,
        )

    monkeypatch.setattr("open_clip.create_model", create)
    with pytest.raises(UserError, match=r"QuickGELU mismatch .* ViT-B-32-quickgelu"):
        load_clip(named(tmp_path, source="pretrained", model="ViT-B-32", tag="openai"))


def test_open_clip_still_words_the_mismatch_as_we_expect() -> None:
    import inspect

    from open_clip import factory

    assert 'f"QuickGELU mismatch between' in inspect.getsource(factory.create_model)


def test_named_models_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="knows no model 'ViT-B-99'"):
        load_clip(named(tmp_path, source="random", model="ViT-B-99"))
    with pytest.raises(UserError, match="source = 'pretrained' takes model and tag; missing tag"):
        named(tmp_path, source="pretrained", model="ViT-B-32")
    with pytest.raises(UserError, match="run `make clip` first"):
        load_clip(named(tmp_path, source="run"))
    with pytest.raises(UserError, match="is not a CLIP folder"):
        load_clip(named(tmp_path, source="checkpoint", path=str(tmp_path)))


@pytest.mark.parametrize("model", ["ViT-B-16-SigLIP", "roberta-ViT-B-32"])
def test_a_model_with_another_tokenizer_is_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = named(tmp_path, source="random", model=model)

    def unreachable(_: str) -> None:
        raise OSError("no network\nand more lines")

    monkeypatch.setattr("open_clip.get_tokenizer", unreachable)
    with pytest.raises(UserError, match=rf"cannot load the tokenizer of {model}: no network$"):
        load_clip(run)
    monkeypatch.setattr("open_clip.get_tokenizer", lambda _: object())
    with pytest.raises(UserError, match=rf"{model} uses object, whose padding and end-of-text are not CLIP's"):
        load_clip(run)


def test_the_bpe_file_travels_with_the_clip(folder: Path) -> None:
    (folder / BPE_FILE).unlink()
    with pytest.raises(UserError, match="the tokenizer has 49408 ids"):
        load_clip_folder(folder)
