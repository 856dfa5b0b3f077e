"""Conditions, masks, and the paper's sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from embed.clip.model import load_clip_folder
from tests.conftest import save_tiny_clip
from training.networks.conditions import Captions, ClipShape, DecoderCondition, PriorCondition
from training.networks.prior import INPUT_STD, Prior
from training.networks.unet import Decoder
from training.settings import DecoderSettings, PriorSettings
from training.tables import DecoderArchitecture, PriorArchitecture, TextEncoderSettings

CLIP = ClipShape(embed_dim=8, context_length=6, vocab_size=12)
SMALL_DECODER = DecoderArchitecture(
    side=8, channels=(8, 16), head_channels=8, norm_groups=4, text=TextEncoderSettings(width=16, depth=1, heads=2)
)
IDS = torch.tensor([[10, 3, 11, 0, 0, 0], [10, 4, 5, 6, 11, 0]])
COUNTS = torch.tensor([3, 5])
CAPTIONS = Captions(IDS, COUNTS)
FLIPPED = Captions(IDS.flip(0), COUNTS.flip(0))
T = torch.tensor([10, 900])


def prior() -> Prior:
    torch.manual_seed(0)
    return Prior(PriorArchitecture(width=16, depth=2, heads=2), CLIP).eval()


def decoder(use_clip: bool) -> Decoder:
    torch.manual_seed(0)
    network = Decoder(SMALL_DECODER, CLIP, use_clip).eval()
    with torch.no_grad():  # learned nulls start at zero, where a leak could hide
        for name, parameter in network.named_parameters():
            if "null" in name or "padding" in name or "learned" in name:
                parameter.normal_()
    return network


def drops(*values: bool) -> Tensor:
    return torch.tensor(values)


def z(seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_scale_gives_the_papers_variance_and_unscale_inverts_it() -> None:
    network = prior()
    x = network.scale(z(0))
    assert x.square().mean().sqrt().item() == pytest.approx(INPUT_STD, rel=1e-5)
    assert pytest.approx(17.2) == INPUT_STD * 1024**0.5
    assert torch.allclose(network.unscale(x), z(0), atol=1e-6)
    assert not any(
        p.requires_grad for name, p in network.named_parameters() if "clip_std" in name or "clip_mean" in name
    )


def test_every_trained_parameter_of_both_networks_gets_a_gradient() -> None:
    d, p = decoder(True), prior()
    mixed = drops(True, False)
    d(torch.randn(2, 3, 8, 8), T, DecoderCondition(CAPTIONS, z(1), mixed, mixed)).square().mean().backward()
    p(z(2), T, PriorCondition(CAPTIONS, z(1), mixed)).square().mean().backward()
    unused = [n for net in (d, p) for n, w in net.named_parameters() if w.requires_grad and w.grad is None]
    assert unused == []


def test_prior_is_causal() -> None:
    network, seen = prior(), []
    network.transformer.transformer_blocks[-1].register_forward_hook(lambda m, i, out: seen.append(out))
    for ids in (IDS, torch.where(IDS == 6, 7, IDS)):  # row 1 differs from its fourth token on
        network(z(0), T, PriorCondition(Captions(ids, COUNTS), z(1), drops(False, False)))
    first, second = seen
    assert torch.equal(first[1, :3], second[1, :3])
    assert not torch.allclose(first[1, 3:], second[1, 3:])


def test_prior_ignores_padding_and_dropped_conditions() -> None:
    network = prior()
    kept, dropped = drops(False, False), drops(True, True)
    base = network(z(0), T, PriorCondition(CAPTIONS, z(1), kept))
    with torch.no_grad():
        network.token_embedding.weight[0] += 100  # the padding id
    assert torch.allclose(base, network(z(0), T, PriorCondition(CAPTIONS, z(1), kept)), atol=1e-5)
    null = network(z(0), T, PriorCondition(CAPTIONS, z(1), dropped))
    assert torch.equal(null, network(z(0), T, PriorCondition(FLIPPED, z(3), kept).null()))
    assert not torch.allclose(null, base)


def test_padding_is_told_by_the_count_and_not_by_an_id(tmp_path: Path) -> None:
    clip = load_clip_folder(save_tiny_clip(tmp_path))
    ids = clip.tokenize(["wow!!", "a ring"])
    assert (ids[0, : clip.token_counts(ids)[0]] == 0).sum() == 1  # the first "!"
    assert Captions(ids, clip.token_counts(ids)).mask().sum(dim=1).tolist() == clip.token_counts(ids).tolist()
    # An end-of-text that is not the largest id, as other tokenizers have it.
    with_0, other = torch.tensor([[10, 3, 0, 4, 9, 0]] * 2), torch.tensor([[10, 3, 5, 4, 9, 0]] * 2)
    no, x = drops(False, False), torch.randn(2, 3, 8, 8)
    for network, inputs, cond in (
        (prior(), z(0), lambda ids: PriorCondition(Captions(ids, torch.tensor([5, 5])), z(1), no)),
        (decoder(True), x, lambda ids: DecoderCondition(Captions(ids, torch.tensor([5, 5])), z(1), no, no)),
    ):
        base = network(inputs, T, cond(with_0))
        assert not torch.allclose(base, network(inputs, T, cond(other)), atol=1e-5)
        with torch.no_grad():  # it is seen as itself, not as a gap
            (network if isinstance(network, Prior) else network.text_encoder).token_embedding.weight[0].normal_()
        assert not torch.allclose(base, network(inputs, T, cond(with_0)), atol=1e-5)


def test_fully_dropped_decoder_ignores_caption_and_z_i() -> None:
    network, x = decoder(True), torch.randn(2, 3, 8, 8)
    null = network(x, T, DecoderCondition(CAPTIONS, z(1), drops(True, True), drops(True, True)))
    assert torch.equal(
        null, network(x, T, DecoderCondition(FLIPPED, z(2), drops(False, False), drops(False, False)).null())
    )


def test_each_condition_matters_only_where_it_is_kept() -> None:
    network, x = decoder(True), torch.randn(2, 3, 8, 8)
    yes, no = drops(True, True), drops(False, False)

    def out(captions: Captions, z_i: Tensor, drop_caption: Tensor, drop_clip: Tensor) -> Tensor:
        return network(x, T, DecoderCondition(captions, z_i, drop_caption, drop_clip))

    assert torch.equal(out(CAPTIONS, z(1), no, yes), out(CAPTIONS, z(2), no, yes))
    assert torch.equal(out(CAPTIONS, z(1), yes, no), out(FLIPPED, z(1), yes, no))
    both = out(CAPTIONS, z(1), no, no)
    assert not torch.allclose(both, out(CAPTIONS, z(2), no, no)) and not torch.allclose(
        both, out(FLIPPED, z(1), no, no)
    )


def test_masks_are_per_row_and_encoding_once_is_the_same() -> None:
    network, x = decoder(True), torch.randn(2, 3, 8, 8)
    cond = DecoderCondition(CAPTIONS, z(1), drops(True, False), drops(False, True))
    one_by_one = []
    for i in (slice(0, 1), slice(1, 2)):
        row = DecoderCondition(Captions(IDS[i], COUNTS[i]), z(1)[i], cond.drop_caption[i], cond.drop_clip[i])
        one_by_one.append(network(x[i], T[i], row))
    assert torch.allclose(network(x, T, cond), torch.cat(one_by_one), atol=1e-5)
    assert torch.equal(network(x, T, cond), network(x, T, network.encode(cond)))


def test_glide_has_no_place_for_z_i() -> None:
    network, x = decoder(False), torch.randn(2, 3, 8, 8)
    no = drops(False, False)
    assert torch.equal(
        network(x, T, DecoderCondition(CAPTIONS, z(1), no, no)), network(x, T, DecoderCondition(CAPTIONS, None, no, no))
    )
    assert not any("clip" in name for name, _ in network.named_parameters())


def test_parameter_counts_of_the_paper_preset() -> None:
    """Table 3: prior 1B, decoder 3.5B of which the text encoder 1.2B (its 49,408 token embeddings come on top)."""
    clip = ClipShape(embed_dim=1024, context_length=256, vocab_size=49408)
    prior_row = PriorSettings.model_validate({"preset": "paper"})
    decoder_row = DecoderSettings.model_validate({"preset": "paper"})
    with torch.device("meta"):
        p, d = Prior(prior_row.architecture, clip), Decoder(decoder_row.architecture, clip, True)

    def millions(module: torch.nn.Module) -> float:
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    assert millions(p.transformer) == pytest.approx(1224, abs=1)
    assert millions(d.unet) == pytest.approx(2238, abs=1)
    assert millions(d.text_encoder) - 49408 * 2048 / 1e6 == pytest.approx(1209, abs=1)
    assert millions(d) == pytest.approx(3563, abs=1)


def frozen() -> Decoder:
    """A decoder that reads the states of a CLIP of width 16."""
    torch.manual_seed(0)
    text = TextEncoderSettings(start="clip", width=16, depth=1, heads=2)
    return Decoder(SMALL_DECODER.model_copy(update={"text": text}), CLIP, True).eval()


def with_states(seed: int) -> Captions:
    return Captions(IDS, COUNTS, torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(seed)))


def test_a_decoder_that_reads_clips_states_has_no_text_transformer() -> None:
    network, x, no = frozen(), torch.randn(2, 3, 8, 8), drops(False, False)
    assert network.reads_states and not decoder(True).reads_states
    assert {name for name, _ in network.text_encoder.named_parameters()} == {"padding_embedding", "null_embedding"}
    captions = with_states(0)
    base = network(x, T, DecoderCondition(captions, z(1), no, no))
    assert not torch.allclose(base, network(x, T, DecoderCondition(with_states(1), z(1), no, no)))
    behind = torch.where(captions.mask()[..., None], captions.states, torch.nan)
    assert torch.equal(base, network(x, T, DecoderCondition(Captions(IDS, COUNTS, behind), z(1), no, no)))
    null = network(x, T, DecoderCondition(captions, z(1), no, no).null())
    assert torch.equal(null, network(x, T, DecoderCondition(with_states(1), z(2), no, no).null()))
    assert not torch.allclose(null, base)


def test_every_parameter_of_a_decoder_that_reads_states_gets_a_gradient() -> None:
    network, mixed = frozen(), drops(True, False)
    network(torch.randn(2, 3, 8, 8), T, DecoderCondition(with_states(0), z(1), mixed, mixed)).square().mean().backward()
    assert [name for name, w in network.named_parameters() if w.grad is None] == []
