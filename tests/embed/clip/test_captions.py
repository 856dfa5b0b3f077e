"""Text towers: the packed forward equals open_clip's own, every other kind of tower runs at full length and equals it too."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CustomTextCLIP
from torch.nn.functional import normalize

from data.pipeline.errors import UserError
from embed.clip.captions import encode_captions
from embed.clip.model import Clip, load_clip_folder, save_clip
from embed.clip.packing import pack
from embed.clip.tokens import hugging_face_tokenizer

LENGTH = 24
CAPTIONS = [
    "a red ring", "A red ring", "", "a red ring on a blue cube", "a cat", "a", "Zwölf Boxkämpfer jagen Viktor über den Deich",
    "日本語 !!", "red " * 40, "a red ring on a blue cube and a green cube on a red ring", "a red ring", "!", "wow!!! a cat",
]  # fmt: skip
VISION = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": LENGTH, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
HUGGING_FACE = {"context_length": LENGTH, "hf_tokenizer_name": "local", "width": 16, "heads": 2, "layers": 2}


def save_tokenizer(folder: Path, config: dict[str, Any], end_is_padding: bool = False) -> None:
    """A word tokenizer of Hugging Face's kind beside the CLIP; with `end_is_padding` as SigLIP has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "ring", "on", "blue", "cube", "cat", "!", "and", "green"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    form = "$A [SEP]" if end_is_padding else "[CLS] $A [SEP]"
    raw.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]",
        pad_token="[SEP]" if end_is_padding else "[PAD]",
    ).save_pretrained(folder)  # fmt: skip
    hugging_face_tokenizer(config, str(folder))


@dataclass(frozen=True)
class Kind:
    """A kind of text tower: open_clip's class, its text config, whether it may run packed, its tokenizer, more config."""

    build: Callable[..., Any]
    text: dict[str, Any]
    packed: bool
    tokenizer: str = "clip"
    more: tuple[tuple[str, Any], ...] = ()


CUSTOM = (("custom_text", True),)
KINDS = {
    "CLIP": Kind(open_clip.CLIP, TEXT, True),
    "CLIP, QuickGELU": Kind(open_clip.CLIP, TEXT, True, more=(("quick_gelu", True),)),
    "CLIP, layer scale": Kind(open_clip.CLIP, TEXT | {"ls_init_value": 0.1}, True),
    "one layer": Kind(open_clip.CLIP, TEXT | {"layers": 1}, True),
    "custom, projection with bias": Kind(CustomTextCLIP, TEXT | {"proj_bias": True}, True, more=CUSTOM),
    "no projection": Kind(CustomTextCLIP, TEXT | {"proj_type": "none"}, True, more=CUSTOM),
    "pools at eos": Kind(
        open_clip.CLIP, TEXT | HUGGING_FACE | {"vocab_size": 14, "pool_type": "eos", "eos_id": 3}, True, "words"
    ),
    "pools last": Kind(CustomTextCLIP, TEXT | {"pool_type": "last"}, False, more=CUSTOM),
    "pools first": Kind(CustomTextCLIP, TEXT | {"pool_type": "first", "no_causal_mask": True}, False, more=CUSTOM),
    "not causal": Kind(CustomTextCLIP, TEXT | {"no_causal_mask": True}, False, more=CUSTOM),
    "custom blocks": Kind(CustomTextCLIP, TEXT | {"qk_norm": True}, False, more=CUSTOM),
    "SigLIP": Kind(
        CustomTextCLIP,
        TEXT | HUGGING_FACE | {"vocab_size": 14, "no_causal_mask": True, "pool_type": "last", "proj_bias": True,
                               "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
        False, "words, padded with their end", (*CUSTOM, ("init_logit_bias", -10)),
    ),
    "CoCa": Kind(
        CoCa, TEXT | {"embed_cls": True, "output_tokens": True}, False,
        more=(*CUSTOM, ("multimodal_cfg", TEXT | {"attn_pooler_heads": 2})),
    ),
    "Hugging Face BERT": Kind(
        CustomTextCLIP,
        HUGGING_FACE | {"hf_model_name": "text", "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler",
                        "hf_proj_type": "linear"},
        False, "words",
    ),
}  # fmt: skip


def save_kind(kind: Kind, folder: Path) -> Path:
    """A tiny CLIP of that kind with random weights, whose last states differ much from token to token."""
    folder.mkdir()
    vision = VISION | (
        {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True} if kind.build is CoCa else {}
    )
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": kind.text, **dict(kind.more)}
    if kind.tokenizer != "clip":
        save_tokenizer(folder, config, kind.tokenizer != "words")
    text = dict(kind.text)
    if "hf_model_name" in text:
        from transformers import BertConfig

        BertConfig(
            vocab_size=14, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64,
        ).save_pretrained(folder / "text")  # fmt: skip
        text["hf_model_name"] = str(folder / "text")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        arguments = {name: value for name, value in config.items() if name != "custom_text"}
        model = kind.build(**arguments | {"text_cfg": text})
        for name, tensor in model.named_parameters():
            if "embedding" in name or "text_decoder" in name:  # open_clip leaves some of CoCa's uninitialised
                tensor.data.normal_()
    save_clip(folder, model, config)
    return folder


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def clip(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return load_clip_folder(save_kind(kind, tmp_path_factory.mktemp("kind") / "clip"))


def own(clip: Clip, captions: list[str]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = clip.model.encode_text(
            clip.tokenizer.tokenizer(captions, context_length=LENGTH), normalize=True
        )
    return found


def unit(raw: torch.Tensor) -> torch.Tensor:
    return normalize(raw, dim=-1)


def test_every_tower_gives_open_clips_own_embeddings(clip: Clip, kind: Kind) -> None:
    assert clip.pooling_at_end == kind.packed
    found = encode_captions(clip, CAPTIONS, 3)
    assert found.raw.shape == (len(CAPTIONS), 16) and found.raw.dtype == torch.float32
    assert not torch.allclose(found.raw.norm(dim=1), torch.ones(1), atol=1e-3)  # raw, CoCa's too
    assert (unit(found.raw) - own(clip, CAPTIONS)).abs().max() < 1e-5
    assert (unit(found.raw)[0] - unit(found.raw)[3]).abs().max() > 1e-3  # captions are told apart
    assert torch.equal(found.ids, clip.tokenizer.tokenizer(CAPTIONS, context_length=LENGTH))
    assert (clip.encode_text(clip.tokenize(CAPTIONS)) - own(clip, CAPTIONS)).abs().max() < 1e-5
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (unit(clip.encode_pixels(pixels)) - clip.model.encode_image(pixels, normalize=True)).abs().max() < 1e-5


def test_order_batch_and_company_do_not_matter(clip: Clip) -> None:
    whole = unit(encode_captions(clip, CAPTIONS, 64).raw)
    order = np.random.default_rng(0).permutation(len(CAPTIONS))
    shuffled = unit(encode_captions(clip, [CAPTIONS[i] for i in order], 2).raw)
    assert (shuffled - whole[order]).abs().max() < 1e-6
    for caption, expected in zip(CAPTIONS[:4], whole, strict=False):
        assert (unit(encode_captions(clip, [caption], 1).raw)[0] - expected).abs().max() < 1e-6
    assert torch.equal(encode_captions(clip, CAPTIONS, 3).raw, encode_captions(clip, CAPTIONS, 3).raw)
    assert encode_captions(clip, [], 4).raw.shape == (0, 16)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_near(clip: Clip, kind: Kind, precision: Any, tmp_path: Path) -> None:
    reduced = load_clip_folder(save_kind(kind, tmp_path / "clip"), precision=precision)
    assert reduced.identity == clip.identity and reduced.precision == precision
    found = encode_captions(reduced, CAPTIONS, 4).raw
    assert found.dtype == torch.float32
    assert (unit(found) * own(clip, CAPTIONS)).sum(dim=1).min() > (0.999 if precision == "bf16" else 0.99999)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    image = reduced.encode_pixels(pixels)
    assert image.dtype == torch.float32 and (unit(image) * unit(clip.encode_pixels(pixels))).sum(dim=1).min() > 0.999


def test_long_captions_are_counted_and_keep_their_end(clip: Clip, kind: Kind) -> None:
    words = LENGTH - (1 if "end" in kind.tokenizer else 2)
    captions = ["red " * words, "red " * (words + 1), "red", "", "red " * 90]
    found = encode_captions(clip, captions, 4)
    assert found.truncated.tolist() == [False, True, False, False, True]
    assert found.n_tokens.tolist() == [LENGTH, LENGTH, LENGTH - words + 1, LENGTH - words, LENGTH]
    ends = found.ids[torch.arange(5), found.n_tokens - 1]
    assert len(set(ends.tolist())) == 1  # the end-of-text, also where the caption was cut
    assert torch.equal(found.ids[0], found.ids[1])


def last_states(clip: Clip, ids: torch.Tensor) -> torch.Tensor:
    """What open_clip's own `encode_text` leaves after the text tower's last norm, seen by a hook: (n, context length, width)."""
    seen: list[Any] = []
    tower = getattr(clip.model, "text", clip.model)
    norm = tower.ln_final if hasattr(tower, "ln_final") else tower.transformer
    hook = norm.register_forward_hook(lambda _, args, out: seen.append(out))
    try:
        with torch.no_grad():
            clip.model.encode_text(ids)
    finally:
        hook.remove()
    (found,) = seen
    states: torch.Tensor = getattr(found, "last_hidden_state", found)
    return states


def test_token_states_are_open_clips_own_at_every_token(clip: Clip, kind: Kind) -> None:
    ids = clip.tokenize(CAPTIONS)
    states, counts = clip.token_states(ids), clip.token_counts(ids)
    assert states.shape == (len(CAPTIONS), LENGTH, clip.text_width) and states.dtype == torch.float32
    real = torch.arange(LENGTH) < counts[:, None]
    assert counts.min() >= 1 and counts.max() == LENGTH and states[real].abs().sum(dim=1).min() > 0
    if kind.packed:
        assert not states[~real].any()
    if kind.build is not CoCa:  # whose own forward brings only the pooled state through its norm
        assert (states - last_states(clip, ids))[real].abs().max() < 1e-5
    assert clip.token_states(ids[:0]).shape == (0, LENGTH, clip.text_width)


def test_token_states_serve_a_training(clip: Clip) -> None:
    """They are fixed inputs: nothing flows back into the CLIP, a trained layer can save them, and autocast does not round them."""
    ids, layer = clip.tokenize(CAPTIONS), torch.nn.Linear(clip.text_width, 3)
    states = clip.token_states(ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(clip.token_states(ids), states)
    layer(states).square().mean().backward()
    assert layer.weight.grad is not None and not states.requires_grad
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_identity_covers_a_hugging_face_tokenizer_and_text_config(tmp_path: Path) -> None:
    folder = save_kind(KINDS["Hugging Face BERT"], tmp_path / "clip")
    first = load_clip_folder(folder).identity
    moved = folder.rename(tmp_path / "elsewhere")
    assert load_clip_folder(moved).identity == first
    config = json.loads((moved / "text/config.json").read_text())
    (moved / "text/config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    second = load_clip_folder(moved)
    content = json.loads((moved / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"green": 5, "red": 13}
    (moved / "tokenizer.json").write_text(json.dumps(content))
    third = load_clip_folder(moved)
    assert len({first, second.identity, third.identity}) == 3
    assert third.tokenizer_digest != second.tokenizer_digest


def test_a_tokenizer_that_is_not_there_or_of_another_model_is_one_line(tmp_path: Path) -> None:
    folder = save_kind(KINDS["SigLIP"], tmp_path / "clip")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["red"] = 99
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="ids up to at least 99 .* below 14"):
        load_clip_folder(folder)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"the tokenizer 'local' is not in .*; save it there with save_pretrained$"):
        load_clip_folder(folder)


def test_a_tower_that_disagrees_warns_and_runs_at_full_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_kind(KINDS["CLIP"], tmp_path / "clip")
    theirs = open_clip.CLIP.encode_text

    def other(self: Any, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        found: torch.Tensor = theirs(self, text, normalize) + 0.1 * (text == 0).sum(dim=1, keepdim=True)
        return found

    monkeypatch.setattr(open_clip.CLIP, "encode_text", other)
    with pytest.warns(UserWarning, match=r"differs by .* captions are encoded at full length"):
        clip = load_clip_folder(folder)
    assert not clip.pooling_at_end
    assert (
        unit(encode_captions(clip, CAPTIONS, 4).raw) - unit(other(clip.model, clip.tokenize(CAPTIONS)))
    ).abs().max() < 1e-5


def test_packing_lays_each_beginning_once() -> None:
    ids = np.array([[8, 1, 9, 0], [8, 1, 2, 9], [8, 1, 2, 9], [8, 0, 9, 0], [8, 9, 0, 0]])
    packing = pack(ids, np.array([2, 3, 3, 2, 1]))
    nodes = ids.reshape(-1)[packing.first.numpy()].tolist()
    assert nodes == [8, 1, 9, 2, 9, 0, 9, 9]
    node = packing.node.view(5, 4).numpy()
    assert [nodes[n] for n in node[1]] == [8, 1, 2, 9] and (node[1] == node[2]).all()
    assert packing.end.tolist() == [2, 4, 4, 6, 7]
    # A caption that goes on after another's end shares no padding with it, whatever its ids.
    longer = pack(np.array([[8, 9, 0, 0], [8, 9, 0, 9]]), np.array([1, 3]))
    assert longer.node.view(2, 4)[1].tolist() == [0, 1, 2, 3]


def test_fewer_places_are_computed_than_captions_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The point of packing: rows through the first block, against captions times context length."""
    clip = load_clip_folder(save_kind(KINDS["CLIP"], tmp_path / "clip"))
    rows: list[int] = []
    clip.model.transformer.resblocks[0].mlp.register_forward_hook(lambda _, args, out: rows.append(args[0].shape[0]))
    encode_captions(clip, ["a red ring", "a red cube", "a red ring on a cube", "a red ring"], 64)
    assert sum(rows) == 11  # start, a, red; ring, end; cube, end; on, a, cube, end
