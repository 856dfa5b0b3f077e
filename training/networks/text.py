"""How the decoder reads a caption: by a text transformer of its own, trained with it as in GLIDE (arXiv 2112.10741, section 4), or
from the states of a frozen CLIP's text tower. Both give states and one vector.

A dropped caption and the padding of a short one are learned vectors, so that no attention mask enters the UNet. (diffusers leaves
a context mask unpadded when it happens to be as long as the image's own tokens.)
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from training.networks.conditions import Captions
from training.tables import TextEncoderSettings


class Block(nn.Module):
    """Pre-norm attention and MLP; `visible` bool (n, 1, 1, length) says which tokens are seen."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, visible: Tensor) -> Tensor:
        n, length, width = h.shape
        q, k, v = self.query_key_value(self.norm_attention(h)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=visible)
        h = h + self.out(attended.transpose(1, 2).reshape(n, length, width))
        return h + self.mlp(self.norm_mlp(h))


class TextEncoder(nn.Module):
    """A transformer over token ids in which every token sees the whole caption."""

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

    def forward(self, captions: Captions, drop: Tensor) -> tuple[Tensor, Tensor]:
        """n captions, drop bool (n,) -> states (n, length, width) and the state at the end of the text (n, width); for a dropped
        caption both are constants."""
        visible = captions.mask()[:, None, None, :]
        h = self.token_embedding(captions.ids) + self.positional_embedding
        for block in self.blocks:
            h = block(h, visible)
        return _with_constants(self.norm(h), captions, drop, self.padding_embedding, self.null_embedding)


class FrozenStates(nn.Module):
    """The states that the captions bring along; only what stands for padding and for a dropped caption is learned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.padding_embedding = nn.Parameter(torch.zeros(width))
        self.null_embedding = nn.Parameter(torch.zeros(width))

    def forward(self, captions: Captions, drop: Tensor) -> tuple[Tensor, Tensor]:
        """As `TextEncoder.forward`."""
        assert captions.states is not None, (
            "this network reads the states of a frozen CLIP: the captions must bring them"
        )
        return _with_constants(captions.states, captions, drop, self.padding_embedding, self.null_embedding)


def _with_constants(
    h: Tensor, captions: Captions, drop: Tensor, padding: Tensor, null: Tensor
) -> tuple[Tensor, Tensor]:
    """States h (n, length, width) with `padding` (width,) behind each caption's end and everywhere in a dropped one; the state at the
    end of the text, `null` (width,) for a dropped caption."""
    final = h[torch.arange(len(h), device=h.device), captions.counts - 1]
    states = torch.where((captions.mask() & ~drop[:, None])[..., None], h, padding.to(h.dtype))
    return states, torch.where(drop[:, None], null.to(final.dtype), final)
