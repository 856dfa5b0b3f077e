"""The networks, on diffusers' model classes; this is the one module that imports diffusers.

Both are called as `network(x, t, cond)`. A condition says by masks which of its rows are dropped, so that guidance, training
with dropout and the null condition are the same code.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import PriorTransformer, UNet2DConditionModel
from torch import Tensor, nn

from training.settings import DecoderArchitecture, PriorArchitecture
from training.text_encoder import TextEncoder, caption_mask

CLIP_TOKENS = 4
# Per-dimension standard deviation of the prior's inputs: 17.2 / sqrt(1024), "to match the empirical variance of RGB pixel
# values of ImageNet images scaled to [-1, 1]" (paper, appendix C).
INPUT_STD = 17.2 / 1024**0.5


@dataclass(frozen=True)
class ClipShape:
    """What a network must know of the CLIP it was trained beside."""

    embed_dim: int
    context_length: int
    vocab_size: int


@dataclass(frozen=True)
class PriorCondition:
    """token_ids int64 (n, length), z_t (n, d) of unit length, drop bool (n,): caption and z_t dropped together."""

    token_ids: Tensor
    z_t: Tensor
    drop: Tensor

    def null(self) -> "PriorCondition":
        return replace(self, drop=torch.ones_like(self.drop))


class Prior(nn.Module):
    """Predicts the un-noised z_i, in the scaled space x = z_i * INPUT_STD * sqrt(d) (paper, section 2.2).

    The caption enters as learned token embeddings of the one causal transformer; a dropped one is masked out.
    """

    def __init__(self, settings: PriorArchitecture, clip: ClipShape) -> None:
        super().__init__()
        transformer: Any = PriorTransformer(
            num_attention_heads=settings.heads, attention_head_dim=settings.width // settings.heads, num_layers=settings.depth,
            embedding_dim=clip.embed_dim, num_embeddings=clip.context_length, additional_embeddings=4, dropout=settings.dropout,
            encoder_hid_proj_type=None, added_emb_type="prd",
        )  # fmt: skip
        # diffusers creates both as trainable zeros, which its forward never uses.
        transformer.clip_mean.requires_grad_(False)
        transformer.clip_std.requires_grad_(False).fill_(1 / (INPUT_STD * clip.embed_dim**0.5))
        self.transformer = transformer
        self.token_embedding = nn.Embedding(clip.vocab_size, settings.width)
        self.null_z_t = nn.Parameter(torch.zeros(clip.embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(transformer.positional_embedding, std=0.01)
        nn.init.normal_(transformer.prd_embedding, std=0.01)

    def scale(self, z: Tensor) -> Tensor:
        """Unit vectors -> the space in which the prior diffuses."""
        return (z - self.transformer.clip_mean) / self.transformer.clip_std

    def unscale(self, x: Tensor) -> Tensor:
        return x * self.transformer.clip_std + self.transformer.clip_mean

    def forward(self, x: Tensor, t: Tensor, cond: PriorCondition) -> Tensor:
        """x (n, d), t int64 (n,) -> the estimate of x_0, float32 (n, d)."""
        kept = caption_mask(cond.token_ids) & ~cond.drop[:, None]
        z_t = torch.where(cond.drop[:, None], self.null_z_t, self.scale(cond.z_t))
        # The mask is always given: without one PriorTransformer also leaves out its causal mask.
        out = self.transformer(x, t, z_t, self.token_embedding(cond.token_ids), attention_mask=kept)
        predicted: Tensor = out.predicted_image_embedding
        return predicted.float()


@dataclass(frozen=True)
class DecoderCondition:
    """token_ids int64 (n, length); z_i (n, d) of unit length, or None for GLIDE; bool (n,) masks of what is dropped."""

    token_ids: Tensor
    z_i: Tensor | None
    drop_caption: Tensor
    drop_clip: Tensor

    def null(self) -> "DecoderCondition":
        everything = torch.ones_like(self.drop_caption)
        return replace(self, drop_caption=everything, drop_clip=everything)


@dataclass(frozen=True)
class DecoderContext:
    """A condition as the UNet takes it: an addition to the timestep embedding (n, e) and context tokens (n, length, width)."""

    embedding: Tensor
    tokens: Tensor


class Conditioning(nn.Module):
    """Text states and z_i -> context. Parameters that diffusers' UnCLIPTextProjModel has too bear its names."""

    def __init__(self, clip_dim: int, text_width: int, time_dim: int, use_clip: bool) -> None:
        super().__init__()
        self.embedding_proj = nn.Linear(text_width, time_dim)
        self.use_clip = use_clip
        if use_clip:
            self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.zeros(clip_dim))
            self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(clip_dim, time_dim)
            self.clip_extra_context_tokens_proj = nn.Linear(clip_dim, CLIP_TOKENS * text_width)

    def forward(self, states: Tensor, final: Tensor, z_i: Tensor | None, drop_clip: Tensor) -> DecoderContext:
        embedding = self.embedding_proj(final)
        if not self.use_clip:
            return DecoderContext(embedding, states)
        assert z_i is not None, "the decoder needs z_i; drop it by the mask"
        # sqrt(d): each coordinate of a unit vector then has about unit variance, like the text states.
        z = torch.where(drop_clip[:, None], self.learned_classifier_free_guidance_embeddings, z_i * z_i.shape[1] ** 0.5)
        tokens = self.clip_extra_context_tokens_proj(z).view(len(z), CLIP_TOKENS, -1)
        embedding = embedding + self.clip_image_embeddings_project_to_time_embeddings(z)
        return DecoderContext(embedding, torch.cat([tokens, states.to(tokens.dtype)], dim=1))


class Decoder(nn.Module):
    """GLIDE's network; with `use_clip` z_i joins the timestep embedding and adds four context tokens (paper, section 2.1)."""

    def __init__(self, settings: DecoderArchitecture, clip: ClipShape, use_clip: bool) -> None:
        super().__init__()
        levels = len(settings.channels)
        self.side = settings.side
        self.unet: Any = UNet2DConditionModel(
            sample_size=settings.side, in_channels=3, out_channels=3, block_out_channels=settings.channels,
            layers_per_block=settings.depth, dropout=settings.dropout, norm_num_groups=settings.norm_groups,
            down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * (levels - 1),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D",) * (levels - 1) + ("ResnetUpsampleBlock2D",),
            attention_head_dim=settings.head_channels, cross_attention_dim=settings.text.width,
            resnet_time_scale_shift="scale_shift", class_embed_type="identity",
        )  # fmt: skip
        self.text_encoder = TextEncoder(settings.text, clip.vocab_size, clip.context_length)
        self.conditioning = Conditioning(clip.embed_dim, settings.text.width, 4 * settings.channels[0], use_clip)

    def encode(self, cond: DecoderCondition) -> DecoderContext:
        """The part of the network that does not depend on x and t; a sampler computes it once."""
        states, final = self.text_encoder(cond.token_ids, cond.drop_caption)
        context: DecoderContext = self.conditioning(states, final, cond.z_i, cond.drop_clip)
        return context

    def forward(self, x: Tensor, t: Tensor, cond: DecoderCondition | DecoderContext) -> Tensor:
        """x (n, 3, side, side) in [-1, 1] plus noise, t int64 (n,) -> the process's prediction, float32, x's shape."""
        context = self.encode(cond) if isinstance(cond, DecoderCondition) else cond
        out: Tensor = self.unet(x, t, context.tokens, class_labels=context.embedding).sample
        return out.float()
