"""`scores/aesthetic`: LAION's linear aesthetic heads on the cache's image embeddings.

Source: github.com/LAION-AI/aesthetic-predictor, `sa_0_4_vit_l_14_linear.pth` and `sa_0_4_vit_b_32_linear.pth`: a linear layer on
OpenAI's CLIP embeddings of unit length, trained on ratings from 0 to 10 (it is not clipped to them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from data.pipeline.artifacts import sha256_file
from data.pipeline.errors import Code, UserError
from data.pipeline.run import Run
from data.pipeline.stage import PartSpec, Stage
from embed.format import NULL_PART, read_metadata
from embed.reading.mapped import OpenPart
from embed.scores.parts import CachePart
from embed.settings import LAION_HEADS_BY_NAME, AestheticSettings, ClipSettings, is_openais

STAGE_VERSION = 1
# LAION's files by digest, and whose embeddings they were trained on.
LAION_HEADS_BY_DIGEST = {
    "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f": "ViT-B-32",
    "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba": "ViT-L-14",
}


@dataclass(frozen=True)
class AestheticHead:
    """score = weight . z_i + bias, for z_i of unit length; float64. `trained_on` is the CLIP, where the file is known."""

    weight: NDArray[np.float64]
    bias: float
    digest: str
    trained_on: str | None

    @property
    def dim(self) -> int:
        return len(self.weight)

    def score(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """Stored image embeddings float16 (n, d) -> scores (n,), larger is better. The vectors are brought to unit length first."""
        found = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), 1024):
            z = vectors[start : start + 1024].astype(np.float64)
            z /= np.linalg.norm(z, axis=1, keepdims=True)
            # Sums row by row, not a matrix product: its last bits would depend on how many rows are asked for.
            found[start : start + 1024] = np.einsum("nd,d->n", z, self.weight) + self.bias
        return found

    def fits(self, clip_name: str) -> bool | None:
        """Whether a cache's CLIP (`model/tag`) is the one the head was trained on; None where the head is not known, or the CLIP comes
        from a folder, whose name says nothing."""
        if self.trained_on is None or "/" not in clip_name:
            return None
        return is_openais(self.trained_on, clip_name)


def load_head(path: Path) -> AestheticHead:
    """Read a head. Raises UserError when the file is missing or is not one linear layer to one number; unpickles tensors only."""
    state = _read_tensors(path)
    held = state.items() if isinstance(state, dict) else ()
    shapes = {str(k): tuple(v.shape) for k, v in held if isinstance(v, torch.Tensor)}
    weight, bias = shapes.get("weight", ()), shapes.get("bias", ())
    if set(shapes) != {"weight", "bias"} or bias != (1,) or len(weight) != 2 or weight[0] != 1:
        raise UserError(
            f"embeddings.aesthetic.head: {path} is not a linear head, which holds weight (1, d) and bias (1,); it holds "
            f"{str(shapes)[:300] if shapes else 'no named tensors'}",
            Code.DAMAGED,
        )
    digest = sha256_file(path)
    # By the name under which LAION gives it where the digest is another (saved again, or a later one).
    trained_on = LAION_HEADS_BY_DIGEST.get(digest) or LAION_HEADS_BY_NAME.get(path.name)
    return AestheticHead(state["weight"][0].double().numpy(), float(state["bias"][0]), digest, trained_on)


def _read_tensors(path: Path) -> Any:
    if not path.is_file():
        raise UserError(
            f"embeddings.aesthetic.head: {path} does not exist; get a file such as sa_0_4_vit_l_14_linear.pth from "
            "github.com/LAION-AI/aesthetic-predictor",
            Code.MISSING,
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a strange file the unpickler raises whatever it likes, and advises what is not safe
        raise UserError(
            f"embeddings.aesthetic.head: {path} is not a file of tensors, of which a head is made ({type(error).__name__} while it was "
            "read); get one such as sa_0_4_vit_l_14_linear.pth from github.com/LAION-AI/aesthetic-predictor",
            Code.DAMAGED,
        ) from None


@dataclass(frozen=True)
class AestheticWork:
    """The part of the cache to score, and the head's file."""

    path: Path
    head: Path


def aesthetic_stage(run: Run, settings: AestheticSettings, cached: Sequence[CachePart]) -> Stage:
    """`scores/aesthetic`: column `aesthetic` by pair. Raises UserError when the head does not fit the cache."""
    path = Path(settings.head).resolve()
    head = load_head(Path(settings.head))
    facts = read_metadata(str(run.embeddings.folder / f"{NULL_PART}.parquet"))
    fits = _fitting(run, settings, head, facts)
    shaping = {
        "head": head.digest, "head_clip": head.trained_on or "unknown", "clip": facts["clip_name"],
        "clip_is_the_heads": "unknown" if fits is None else fits,
    }  # fmt: skip
    parts = [PartSpec(part.name, (part.input,), AestheticWork(part.path, path)) for part in cached]
    return Stage("scores-aesthetic", STAGE_VERSION, run.scores("aesthetic").folder, shaping, parts, aesthetic_part)


def _fitting(run: Run, settings: AestheticSettings, head: AestheticHead, facts: dict[str, str]) -> bool | None:
    """Whether the cache is of the CLIP that the head was trained on; None where that is not known. Raises UserError where the head takes
    vectors of another size, or is of another CLIP and the settings do not say that this is meant."""
    name = Path(settings.head).name
    if head.dim != int(facts["dim"]):
        raise UserError(
            f"embeddings.aesthetic.head: {name} takes embeddings of {head.dim} numbers, those of {facts['clip_name']} in "
            f"{run.embeddings.folder} have {facts['dim']}; LAION's heads exist for ViT-L/14 (768), ViT-B/16 and ViT-B/32 (512)",
            Code.FOREIGN,
        )
    # The run's own CLIP was trained by this run and nobody else.
    own = head.trained_on is not None and run.config[ClipSettings].source == "run"
    fits = False if own else head.fits(facts["clip_name"])
    if fits is False and not settings.any_clip:
        raise UserError(
            f"embeddings.aesthetic.head: {name} was trained on embeddings of OpenAI's {head.trained_on}, the cache holds those of "
            f"{facts['clip_name']}, on which its scores mean nothing; set embeddings.aesthetic.any_clip = true to compute them "
            f"all the same",
            Code.FOREIGN,
        )
    return fits


def aesthetic_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    head, part = load_head(spec.work.head), OpenPart(spec.work.path)
    tables = []
    for group in range(part.groups):
        pairs = part.columns(group, ["key", "caption_index"]).replace_schema_metadata(None)
        scores = head.score(part.matrix(group, "image_embedding", np.dtype("<f2"), head.dim))
        tables.append(pairs.append_column("aesthetic", pa.array(scores)))
    schema = pa.schema([("key", pa.string()), ("caption_index", pa.int32()), ("aesthetic", pa.float32())])
    table = pa.concat_tables([t.cast(schema) for t in tables]) if tables else schema.empty_table()
    pq.write_table(table, attempt / f"{spec.name}.parquet")
    return {"pairs": len(table)}
