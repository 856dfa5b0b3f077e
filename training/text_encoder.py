"""The decoder's text encoder, trained with it as in GLIDE (arXiv 2112.10741, section 4): token ids -> states and one vector."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from training.settings import TextEncoderSettings


class Block(nn.Module):
    """Pre-norm attention (not causal, padding hidden) and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        n, length, width = h.shape
        q, k, v = self.query_key_value(self.norm_attention(h)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
        h = h + self.out(attended.transpose(1, 2).reshape(n, length, width))
        return h + self.mlp(self.norm_mlp(h))


class TextEncoder(nn.Module):
    """A dropped caption and the padding of a short one are learned vectors, so that no attention mask enters the UNet.

    (diffusers leaves a context mask unpadded when it happens to be as long as the image's own tokens.)
    """

    def __init__(self, settings: TextEncoderSettings, vocab_size: int, context_length: int) -> None:
        super().__init__()
        width = settings.width
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, width))
        self.blocks = nn.ModuleList(Block(width, settings.heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width)
        self.padding_embedding = nn.Parameter(torch.zeros(width))
        self.null_embedding = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 (n, length), 0-padded, end-of-text the largest id; drop bool (n,).

        Returns states (n, length, width) and the state at the end of the text (n, width); for a dropped caption both are constants.
        """
        real = ids != 0
        h = self.token_embedding(ids) + self.positional_embedding
        for block in self.blocks:
            h = block(h, real)
        h = self.norm(h)
        final = h[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
        states = torch.where((real & ~drop[:, None])[..., None], h, self.padding_embedding.to(h.dtype))
        return states, torch.where(drop[:, None], self.null_embedding.to(final.dtype), final)
