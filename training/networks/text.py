"""The decoder's text encoder, trained with it as in GLIDE (arXiv 2112.10741, section 4): token ids -> states and one vector."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from data.pipeline.errors import UserError
from training.settings import TextEncoderSettings


def caption_mask(ids: Tensor) -> Tensor:
    """ids int64 (n, length) -> bool (n, length): True up to and including the end-of-text, which is the largest id of a row.

    Padding is told by its place, not by its id 0: CLIP's vocabulary has a token of that id, the "!" inside a word.
    """
    return torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(dim=1, keepdim=True)


class Block(nn.Module):
    """Pre-norm attention and MLP; `visible` bool (n, 1, length or 1, length) says which tokens each one sees."""

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
        # CLIP's tower is causal; one trained from scratch need not be.
        self.causal = settings.start == "clip"
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: Tensor, drop: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 (n, length), 0-padded, end-of-text the largest id; drop bool (n,).

        Returns states (n, length, width) and the state at the end of the text (n, width); for a dropped caption both are constants.
        """
        real = caption_mask(ids)
        h = self.token_embedding(ids) + self.positional_embedding
        visible = real[:, None, None, :]
        if self.causal:
            visible = visible & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        for block in self.blocks:
            h = block(h, visible)
        h = self.norm(h)
        final = h[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)]
        states = torch.where((real & ~drop[:, None])[..., None], h, self.padding_embedding.to(h.dtype))
        return states, torch.where(drop[:, None], self.null_embedding.to(final.dtype), final)

    def copy_clip(self, clip: Any) -> None:
        """Take over the text tower of an open_clip `CLIP` and freeze it. Raises UserError when the shapes differ."""
        blocks = list(clip.transformer.resblocks)
        theirs = (
            clip.ln_final.normalized_shape[0],
            len(blocks),
            blocks[0].attn.num_heads,
            *clip.token_embedding.weight.shape[:1],
        )
        ours = (self.norm.normalized_shape[0], len(self.blocks), self._heads, *self.token_embedding.weight.shape[:1])
        if theirs != ours or not isinstance(blocks[0].mlp.gelu, nn.GELU):
            raise UserError(
                f"decoder.architecture.text.start = 'clip' needs the CLIP's own width, depth, heads and GELU: the CLIP's text tower has "
                f"{theirs[:3]}, the config says {ours[:3]}; set width, depth and heads to the CLIP's, or start = 'random'"
            )
        pairs = [(self.token_embedding, clip.token_embedding), (self.norm, clip.ln_final)]
        mine: Any
        for mine, other in zip(self.blocks, blocks, strict=True):
            pairs += [(mine.norm_attention, other.ln_1), (mine.norm_mlp, other.ln_2), (mine.out, other.attn.out_proj)]
            pairs += [(mine.mlp[0], other.mlp.c_fc), (mine.mlp[2], other.mlp.c_proj)]
            with torch.no_grad():
                mine.query_key_value.weight.copy_(other.attn.in_proj_weight)
                mine.query_key_value.bias.copy_(other.attn.in_proj_bias)
        for target, source in pairs:
            target.load_state_dict(source.state_dict())
        with torch.no_grad():
            self.positional_embedding.copy_(clip.positional_embedding)
        for module in (self.token_embedding, self.norm, *self.blocks):
            module.requires_grad_(False)
        self.positional_embedding.requires_grad_(False)

    @property
    def _heads(self) -> int:
        first: Any = self.blocks[0]
        return int(first.heads)
