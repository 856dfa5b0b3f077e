"""Captions, and z_i where there are any, -> images, by the decoder or its GLIDE twin."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.pipeline.artifacts import Artifact
from embed.clip.model import Clip
from training.checkpoints import Trained, load_trained
from training.diffusion.guidance import guided
from training.diffusion.samplers import NoiseStream, ddim
from training.loop.pixels import to_uint8
from training.loop.precision import computing, device_of, plain_attention
from training.networks.conditions import DecoderCondition
from training.networks.unet import build_decoder
from training.sampling.batches import captions_of, fixed_batches, require_counts

KINDS = {"decoder": build_decoder, "glide": build_decoder}


def load_decoder(artifact: Artifact, clip_identity: str | None = None) -> Trained:
    """A decoder or a GLIDE baseline; refuses like `training.checkpoints.load_trained`."""
    return load_trained(artifact, KINDS, clip_identity)


@torch.inference_mode()
def sample_decoder(
    decoder: Trained, clip: Clip, ids: Tensor, z_i: Tensor | None, seeds: Sequence[int],
    guidance: float = 1.0, steps: int = 50, batch: int = 16, eta: float = 0.0, drop_caption: bool = False,
) -> NDArray[np.uint8]:  # fmt: skip
    """uint8 images (n, side, side, 3) by DDIM, of captions as `clip`'s token ids int64 (n, length).

    z_i float32 (n, d) of unit length; None drops it (caption only; always for GLIDE). `drop_caption` conditions on z_i alone.
    Raises UserError where counts differ."""
    require_counts(len(ids), z_i=z_i, seeds=seeds)
    device, network = device_of(decoder.network), decoder.network
    z = torch.zeros(len(ids), decoder.config["clip"]["embed_dim"]) if z_i is None else z_i
    found = []
    with plain_attention(device):
        for rows, count in fixed_batches(len(ids), batch):
            noise = NoiseStream([seeds[row] for row in rows], "decoder")
            cond = DecoderCondition(
                captions_of(clip, ids[rows], network.reads_states).to(device), z[rows].to(device),
                torch.full((batch,), drop_caption, device=device), torch.full((batch,), z_i is None, device=device),
            )  # fmt: skip
            with computing(decoder.precision, device):
                model = guided(network, network.encode(cond.null()), guidance)
                x = noise.draw(3, network.side, network.side).to(device)
                x = ddim(model, decoder.process, x, network.encode(cond), steps, noise, eta, lambda x0: x0.clamp(-1, 1))
            found.append(to_uint8(x[:count]).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(found) if found else np.zeros((0, network.side, network.side, 3), np.uint8)
