"""The generations stage: every system on the same captions and seeds, one PNG an image and an index. A part is a part of the
prompt set, drawn by any worker."""

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.generations import GENERATIONS_SCHEMA
from data.pipeline.artifacts import Artifact, Receipt, fingerprint
from data.pipeline.executors import Executor
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stages
from data.pipeline.stage import Input, PartSpec, Stage
from embed.encoding.threads import one_thread
from eval.images import tile, write_png
from eval.prompts import Prompt, part_path, read_part, read_prompts
from eval.settings import EvalSettings
from eval.systems import System, open_systems


@dataclass(frozen=True)
class GenerationJob:
    """One folder of generated images to be: a system on a prompt set at one decoder guidance scale."""

    system: System
    prompt_set: str
    guidance: float
    images_per_prompt: int
    seed: int

    def settings(self) -> dict[str, Any]:
        return {
            "system": self.system.name, "prompt_set": self.prompt_set, "guidance_decoder": self.guidance,
            "guidance_prior": self.system.guidance_prior, "steps": self.system.steps, "sampling": dict(self.system.sampling),
            "seed": self.seed, "images_per_prompt": self.images_per_prompt, "side": self.system.side,
        }  # fmt: skip

    @property
    def settings_hash(self) -> str:
        return fingerprint(self.settings())[:12]

    @property
    def folder(self) -> str:
        """Relative to the run's."""
        return f"generations/{self.system.name}/{self.prompt_set}-{self.settings_hash}"

    def draw(self, prompts: Sequence[Prompt]) -> NDArray[np.uint8]:
        """uint8 (n prompts * images, side, side, 3) in the order of `image_rows`."""
        rows = list(image_rows(prompts, self.images_per_prompt, self.seed))
        return self.system.generate([p.caption for p, _, _ in rows], [seed for _, _, seed in rows], self.guidance)


@dataclass(frozen=True)
class GenerationWork:
    """A part: the job, and the file of its prompts."""

    job: GenerationJob
    prompts: Path


def jobs(system: System, settings: EvalSettings, seed: int) -> list[GenerationJob]:
    """Every folder that a config asks of a system: `captions` at all scales, `grids` at one."""
    return [
        GenerationJob(system, name, scale, prompt_set.images, seed)
        for name, prompt_set in settings.prompt_sets.items()
        for scale in settings.scales(name)
    ]


def image_seed(run_seed: int, prompt_id: str, image_index: int) -> int:
    """The seed of one image, in [0, 2^48): the same for every system and scale, whatever the other prompts are."""
    digest = hashlib.sha256(f"{run_seed}/{prompt_id}/{image_index}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def image_rows(prompts: Sequence[Prompt], images: int, run_seed: int) -> Iterator[tuple[Prompt, int, int]]:
    """(prompt, image index, seed) of every image."""
    for prompt in prompts:
        for index in range(images):
            yield prompt, index, image_seed(run_seed, prompt.prompt_id, index)


def generate_all(run: Run, executor: Executor) -> list[Artifact]:
    """Draw what is missing of every system's images, side by side. The prompt sets must exist."""
    drawn = run.scratch / "z_i"
    wanted = [job for system in open_systems(run, drawn) for job in jobs(system, run.config[EvalSettings], run.seed)]
    made = generate(run, wanted, executor)
    shutil.rmtree(drawn, ignore_errors=True)
    return made


def generate(run: Run, wanted: Sequence[GenerationJob], executor: Executor) -> list[Artifact]:
    """Draw what is missing of some jobs. Scales follow one another over the same prompts, so that a part finds what the prior drew
    for the scale before (see `RunSystem.drawn`)."""
    return run_stages([generation_stage(run, job) for job in wanted], executor, run.logs)


def generation_stage(run: Run, job: GenerationJob) -> Stage:
    of = f"prompts/{job.prompt_set}"
    prompts = Lineage(run).require(of, "python -m eval generate")
    parts = [
        PartSpec(
            name, (*job.system.inputs, Input(f"{of}:{name}", digest)), GenerationWork(job, part_path(prompts, name))
        )
        for name, digest in prompts.part_digests().items()
    ]
    name = f"generate-{job.system.name}-{job.prompt_set}-{job.guidance:g}"
    finish = partial(write_index, job, prompts)
    return Stage(name, 1, run.folder / job.folder, job.settings(), parts, draw_part, finish)


def draw_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Draw the images of one part's prompts, on one torch thread."""
    work: GenerationWork = spec.work
    prompts = read_part(work.prompts)
    with one_thread():
        images = work.job.draw(prompts)
    (attempt / "images").mkdir()
    rows = image_rows(prompts, work.job.images_per_prompt, work.job.seed)
    for (prompt, index, _), image in zip(rows, images, strict=True):
        (attempt / _file(prompt, index)).write_bytes(write_png(image))
    return {"prompts": len(prompts), "images": len(images)}


def _file(prompt: Prompt, index: int) -> str:
    return f"images/{prompt.prompt_id}-{index:02d}.png"


def write_index(job: GenerationJob, prompts: Artifact, folder: Path, receipts: list[Receipt]) -> list[str]:
    """Write `index.parquet`: one row an image."""
    facts = {name: file for receipt in receipts for name, file in receipt.files.items()}
    rows = []
    for prompt, index, seed in image_rows(read_prompts(prompts), job.images_per_prompt, job.seed):
        file = _file(prompt, index)
        rows.append(
            {
                "image_id": f"{prompt.prompt_id}-{index:02d}", "prompt_id": prompt.prompt_id, "caption": prompt.caption,
                "caption_key": prompt.caption_key, "system": job.system.name, "seed": seed, "image_index": index,
                "guidance_prior": job.system.guidance_prior, "guidance_decoder": job.guidance, "steps": job.system.steps,
                "file": file, "sha256": facts[file]["sha256"], "width": job.system.side, "height": job.system.side,
            }
        )  # fmt: skip
    rows.sort(key=lambda row: row["image_id"])
    pq.write_table(pa.Table.from_pylist(rows, GENERATIONS_SCHEMA), folder / "index.parquet")
    return ["index.parquet"]


def draw_caption(system: System, caption: str, n: int, guidance: float, run_seed: int) -> NDArray[np.uint8]:
    """n images of a free caption, as one grid of about as many columns as rows: uint8 (h, w, 3)."""
    seeds = [image_seed(run_seed, f"free/{caption}", i) for i in range(n)]
    with one_thread():
        images = system.generate([caption] * n, seeds, guidance)
    return tile(images, columns=math.ceil(math.sqrt(n)), gutter=2)
