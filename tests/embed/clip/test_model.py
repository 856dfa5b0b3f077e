"""The CLIP format: identity, strict loading, and a shrunk vocabulary that changes no segmentation."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file

from data.pipeline.config import parse_config
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from embed.clip.load import _tag_facts
from embed.clip.model import BPE_FILE, CONFIG_FILE, WEIGHTS_FILE, load_clip, load_clip_folder, shrink_bpe
from embed.clip.tokens import CaptionTokenizer
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


def test_a_quickgelu_mismatch_is_an_error_before_any_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError,
        match=r"'openai' was trained with QuickGELU, .* built without .* use clip.model = 'ViT-B-32-quickgelu'",
    ):
        load_clip(named(tmp_path, source="pretrained", model="ViT-B-32", tag="openai"))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["ViT-B-32-quickgelu"], "plain", {"hf_hub": "somewhere/"})
    with pytest.raises(
        UserError, match=r"'plain' was trained without QuickGELU, .* built with it.* use clip.model = 'ViT-B-32'$"
    ):
        load_clip(named(tmp_path, source="pretrained", model="ViT-B-32-quickgelu", tag="plain"))


def test_every_tag_of_open_clip_loads_with_one_of_its_models() -> None:
    """Our check leaves each pretrained tag a model to load it with, and its advice names one."""
    refused = set()
    for name, tag in open_clip.list_pretrained():
        try:
            _tag_facts(name, tag, open_clip.get_model_config(name))
        except UserError as error:
            refused.add((name, tag))
            assert "use clip.model = " in str(error), str(error)
    assert ("ViT-B-32", "openai") in refused and ("ViT-B-32-quickgelu", "openai") not in refused


TINY = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture
def tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The facts of a pretrained tag `mine` of a model `tiny`, whose weights lie on disk; a test may change them."""
    model = open_clip.CLIP(**TINY)
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    facts: dict[str, object] = {
        "file": str(tmp_path / "tiny.pt"), "mean": (0.5, 0.5, 0.5), "std": (0.4, 0.4, 0.4), "interpolation": "bilinear",
        "resize_mode": "squash",
    }  # fmt: skip
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"mine": facts})
    return facts


def test_a_pretrained_tag_brings_its_weights_and_preprocessing(tmp_path: Path, tag: dict[str, object]) -> None:
    run = named(tmp_path, source="pretrained", model="tiny", tag="mine")
    clip = load_clip(run)
    assert clip.name == "tiny/mine" and clip.pooling_at_end
    assert clip.preprocess_config["mean"] == [0.5, 0.5, 0.5] and clip.preprocess_config["resize_mode"] == "squash"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    theirs = open_clip.create_model_and_transforms("tiny", pretrained="mine")[2]
    assert torch.equal(clip.preprocess(image), theirs(image))
    weights = torch.load(tmp_path / "tiny.pt", weights_only=True)
    assert torch.equal(clip.model.ln_final.weight, weights["ln_final.weight"])
    tag["std"] = (0.3, 0.3, 0.3)
    assert load_clip(run).identity != clip.identity


def test_preprocessing_other_than_the_tags_own_is_refused(
    tmp_path: Path, tag: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = named(tmp_path, source="pretrained", model="tiny", tag="mine")
    create = open_clip.create_model
    forced = {"mean": (0.4, 0.5, 0.5)}
    monkeypatch.setattr("open_clip.create_model", lambda *a, **k: create(*a, **k, force_preprocess_cfg=forced))
    with pytest.raises(
        UserError, match=r"with 'mine' was trained with preprocessing mean = \[0.5, .* would use \[0.4, "
    ):
        load_clip(run)
    forced.clear()
    tag["size"] = 32
    load_clip(run)
    tag["size"] = 64
    with pytest.raises(UserError, match="preprocessing size = 64, but open_clip would use .32, 32"):
        load_clip(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 64}, "makes images of size 64, the image tower takes 32"),
        ({"mean": None}, r"lacks \['mean'\]"),
        ({"scale": 2}, r"has unknown \['scale'\]"),
        ({"interpolation": "nearest"}, "interpolation = 'nearest' is not one of bicubic, bilinear"),
    ],
)
def test_a_folder_whose_preprocessing_does_not_fit_is_refused(
    folder: Path, change: dict[str, object], message: str
) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text())
    recorded = content["preprocess_cfg"] | change
    content["preprocess_cfg"] = {name: value for name, value in recorded.items() if value is not None}
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_clip_folder(folder)


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
def test_a_tokenizer_that_cannot_be_fetched_is_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(_: str) -> None:
        raise OSError("no network\nand more lines")

    monkeypatch.setattr("open_clip.get_tokenizer", unreachable)
    with pytest.raises(UserError, match=rf"cannot load the tokenizer of {model}: no network$"):
        load_clip(named(tmp_path, source="random", model=model))


def test_captions_have_the_ids_that_open_clip_gives_them() -> None:
    captions = [
        "A corgi's playful puppies", "", "  two\tspaces\nand lines ", "it's They'Re I'LL", "naïve café &amp; 12 o'clock", "日本語",
        "a &lt;b&gt; c", "\x1b[31mred", "ﬁne ＡＢＣ “q”", "😀😀 a_b--c!!!", "<start_of_text> <end_of_text>", "x\x00y", "word " * 100,
    ]  # fmt: skip
    theirs, ours = SimpleTokenizer(), CaptionTokenizer(SimpleTokenizer())
    for length in (77, 5):
        assert torch.equal(ours(captions, length), theirs(captions, context_length=length))
    assert torch.equal(ours(captions), theirs(captions))  # every word known
    assert ours.truncated(captions, ours(captions)).tolist() == [False] * 12 + [True]
    canonical = SimpleTokenizer(clean="canonicalize")
    assert torch.equal(CaptionTokenizer(canonical)(captions), canonical(captions))


def test_a_tokenizer_that_shortens_at_random_is_refused() -> None:
    with pytest.raises(UserError, match="shortens captions at random"):
        CaptionTokenizer(SimpleTokenizer(reduction_mask="random"))


def test_the_bpe_file_travels_with_the_clip(folder: Path) -> None:
    (folder / BPE_FILE).unlink()
    with pytest.raises(UserError, match="the tokenizer has 49408 ids"):
        load_clip_folder(folder)
