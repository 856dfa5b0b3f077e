"""The decoder and its GLIDE twin, on diffusers' UNet."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from training.networks.conditions import ClipShape, DecoderCondition, DecoderContext
from training.networks.text import FrozenStates, TextEncoder
from training.tables import DecoderArchitecture

CLIP_TOKENS = 4


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
        self.reads_states = settings.text.start == "clip"  # captions must bring the states of the frozen CLIP
        self.text_encoder = (
            FrozenStates(settings.text.width)
            if self.reads_states
            else TextEncoder(settings.text, clip.vocab_size, clip.context_length)
        )
        self.conditioning = Conditioning(clip.embed_dim, settings.text.width, 4 * settings.channels[0], use_clip)

    def encode(self, cond: DecoderCondition) -> DecoderContext:
        """The part of the network that does not depend on x and t; a sampler computes it once."""
        states, final = self.text_encoder(cond.captions, cond.drop_caption)
        context: DecoderContext = self.conditioning(states, final, cond.z_i, cond.drop_clip)
        return context

    def forward(self, x: Tensor, t: Tensor, cond: DecoderCondition | DecoderContext) -> Tensor:
        """x (n, 3, side, side) in [-1, 1] plus noise, t int64 (n,) -> the process's prediction, float32, x's shape."""
        context = self.encode(cond) if isinstance(cond, DecoderCondition) else cond
        out: Tensor = self.unet(x, t, context.tokens, class_labels=context.embedding).sample
        return out.float()


def build_decoder(config: Mapping[str, Any]) -> Decoder:
    """The untrained network that a model's config describes, of either kind. Raises KeyError, TypeError or ValueError."""
    architecture, clip = DecoderArchitecture(**config["architecture"]), ClipShape(**config["clip"])
    return Decoder(architecture, clip, use_clip=config["kind"] == "decoder")
