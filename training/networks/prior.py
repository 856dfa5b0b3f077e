"""The diffusion prior, on diffusers' PriorTransformer.

Networks are called as `network(x, t, cond)`. A condition says by masks which of its rows are dropped, so that guidance, training
with dropout and the null condition are the same code.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import PriorTransformer
from torch import Tensor, nn

from training.networks.conditions import ClipShape, PriorCondition
from training.tables import PriorArchitecture

# Per-dimension standard deviation of the prior's inputs: 17.2 / sqrt(1024), "to match the empirical variance of RGB pixel
# values of ImageNet images scaled to [-1, 1]" (paper, appendix C).
INPUT_STD = 17.2 / 1024**0.5


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
        kept = cond.captions.mask() & ~cond.drop[:, None]
        z_t = torch.where(cond.drop[:, None], self.null_z_t, self.scale(cond.z_t))
        # The mask is always given: without one PriorTransformer also leaves out its causal mask.
        out = self.transformer(x, t, z_t, self.token_embedding(cond.captions.ids), attention_mask=kept)
        predicted: Tensor = out.predicted_image_embedding
        return predicted.float()


def build_prior(config: Mapping[str, Any]) -> Prior:
    """The untrained network that a model's config describes. Raises KeyError, TypeError or ValueError."""
    return Prior(PriorArchitecture(**config["architecture"]), ClipShape(**config["clip"]))
