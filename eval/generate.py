"""The samples stage: every system on the same captions and seeds, one PNG an image and an index."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.generations import SAMPLES_SCHEMA
from data.pipeline.artifacts import Artifact, PartSpec, Receipt, fingerprint
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import Stage, run_stage
from eval.images import tile, write_png
from eval.prompts import Prompt, read_prompts
from eval.settings import EvalSettings
from eval.systems import System

PROMPTS_PER_PART = 32
PROMPTS = "prompts"  # the input of a part that is no model


@dataclass(frozen=True)
class SampleJob:
    """One samples artifact to be: a system on a prompt set at one decoder guidance scale."""

    system: System
    prompt_set: str
    guidance: float
    samples_per_prompt: int
    seed: int

    def settings(self) -> dict[str, Any]:
        return {
            "system": self.system.name, "prompt_set": self.prompt_set, "guidance_decoder": self.guidance,
            "guidance_prior": self.system.guidance_prior, "steps": self.system.steps, "sampling": dict(self.system.sampling),
            "seed": self.seed, "samples_per_prompt": self.samples_per_prompt, "side": self.system.side,
        }  # fmt: skip

    @property
    def settings_hash(self) -> str:
        return fingerprint(self.settings())[:12]

    def folder(self, run: Run) -> Path:
        return run.folder / "samples" / self.system.name / f"{self.prompt_set}-{self.settings_hash}"

    def generate(self, prompts: Sequence[Prompt]) -> NDArray[np.uint8]:
        """uint8 (n prompts * samples, side, side, 3) in the order of `image_rows`."""
        rows = list(image_rows(prompts, self.samples_per_prompt, self.seed))
        return self.system.generate([p.caption for p, _, _ in rows], [seed for _, _, seed in rows], self.guidance)


def jobs(system: System, settings: EvalSettings, seed: int) -> list[SampleJob]:
    """Every samples artifact that a config asks of a system: `captions` at all scales, `grids` at one."""
    captions = [SampleJob(system, "captions", scale, settings.captions.samples, seed) for scale in settings.guidance]
    return [*captions, SampleJob(system, "grids", settings.grid_guidance, settings.grids.samples, seed)]


def image_seed(run_seed: int, prompt_id: str, sample_index: int) -> int:
    """The seed of one image, in [0, 2^48): the same for every system and scale, whatever the other prompts are."""
    digest = hashlib.sha256(f"{run_seed}/{prompt_id}/{sample_index}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def image_rows(prompts: Sequence[Prompt], samples: int, run_seed: int) -> Iterator[tuple[Prompt, int, int]]:
    """(prompt, sample index, seed) of every image."""
    for prompt in prompts:
        for index in range(samples):
            yield prompt, index, image_seed(run_seed, prompt.prompt_id, index)


def make_samples(run: Run, job: SampleJob) -> Artifact:
    """Draw what is missing of one samples artifact, in this process, whose torch uses every core. Its prompt set must exist."""
    prompts = read_prompts(run.artifact(f"prompts/{job.prompt_set}"))
    chunks = [prompts[i : i + PROMPTS_PER_PART] for i in range(0, len(prompts), PROMPTS_PER_PART)]
    parts = [
        PartSpec(f"{i:05d}", {**job.system.inputs, PROMPTS: fingerprint([p.row() for p in chunk])}, {"chunk": i})
        for i, chunk in enumerate(chunks)
    ]
    stage = Stage(
        f"samples-{job.system.name}-{job.prompt_set}-{job.guidance:g}", 1, job.folder(run), job.settings(), parts,
        partial(_draw_part, job, chunks), partial(_write_index, job, prompts),
    )  # fmt: skip
    return run_stage(stage, InProcess(), run.logs)


def drawn_with(artifact: Artifact) -> dict[str, str]:
    """Digests of the models that drew a samples artifact (`System.inputs` of then). Raises UserError where its parts differ."""
    plan = artifact.plan_json() or {"parts": []}
    found = [{name: d for name, d in part["inputs"].items() if name != PROMPTS} for part in plan["parts"]]
    if not found or any(inputs != found[0] for inputs in found):
        raise UserError(
            f"{artifact.folder} does not say which models drew it; delete it and run `python -m eval sample`"
        )
    return found[0]


def _draw_part(job: SampleJob, chunks: list[list[Prompt]], spec: PartSpec, attempt: Path) -> dict[str, int]:
    prompts = chunks[spec.payload["chunk"]]
    images = job.generate(prompts)
    (attempt / "images").mkdir()
    for (prompt, index, _), image in zip(image_rows(prompts, job.samples_per_prompt, job.seed), images, strict=True):
        (attempt / _file(prompt, index)).write_bytes(write_png(image))
    return {"prompts": len(prompts), "images": len(images)}


def _file(prompt: Prompt, index: int) -> str:
    return f"images/{prompt.prompt_id}-{index:02d}.png"


def _write_index(job: SampleJob, prompts: list[Prompt], folder: Path, receipts: list[Receipt]) -> list[str]:
    facts = {name: file for receipt in receipts for name, file in receipt.files.items()}
    rows = []
    for prompt, index, seed in image_rows(prompts, job.samples_per_prompt, job.seed):
        file = _file(prompt, index)
        rows.append(
            {
                "image_id": f"{prompt.prompt_id}-{index:02d}", "prompt_id": prompt.prompt_id, "caption": prompt.caption,
                "caption_key": prompt.caption_key, "system": job.system.name, "seed": seed, "sample_index": index,
                "guidance_prior": job.system.guidance_prior, "guidance_decoder": job.guidance, "steps": job.system.steps,
                "file": file, "sha256": facts[file]["sha256"], "width": job.system.side, "height": job.system.side,
            }
        )  # fmt: skip
    rows.sort(key=lambda row: row["image_id"])
    pq.write_table(pa.Table.from_pylist(rows, SAMPLES_SCHEMA), folder / "index.parquet")
    return ["index.parquet"]


def draw_caption(system: System, caption: str, n: int, guidance: float, run_seed: int) -> NDArray[np.uint8]:
    """n images of a free caption, as one grid of about as many columns as rows: uint8 (h, w, 3)."""
    seeds = [image_seed(run_seed, f"free/{caption}", i) for i in range(n)]
    return tile(system.generate([caption] * n, seeds, guidance), columns=math.ceil(math.sqrt(n)), gutter=2)
