"""A run with two fake systems' generated images, made as eval makes them: through run_stage, with the shared schema."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

from data.generations import GENERATIONS_SCHEMA
from data.pipeline.artifacts import Artifact
from data.pipeline.config import Config, parse_config
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage

GUIDANCE = 2.0
CAPTIONS = (
    "a red cube",
    "<script>alert('x')</script> **bold** [link](http://e.vil) $x$",
    'two "spheres" & a cone',
    "a blue ring",
)


def png(seed: int, side: int, comment: str | None = None) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    info = PngImagePlugin.PngInfo()
    if comment:
        info.add_text("Comment", comment)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def fake_config(folder: Path, humaneval: dict[str, Any] | None = None, **tables: dict[str, Any]) -> Config:
    """The default systems, unclip and glide, at eval's default scales. `tables` are further tables, or replace these."""
    settings = {
        "questions_per_rater": 3,
        "simulated": {"raters": 4},
    }
    given = {
        "run": {"name": "fake", "folder": str(folder), "seed": 7},
        "cluster": {"workers": 0},
        "dataset": {"scenes": {"samples": 4}},
        "humaneval": settings | (humaneval or {}),
    }
    return parse_config(given | tables, "fake.toml")


@dataclass(frozen=True)
class Noise:
    """Generated images that are noise, which belongs to (system, prompt, index)."""

    system: str
    per_prompt: int
    side: int
    captions: tuple[str, ...]
    comment: str | None


def write_noise(spec: PartSpec, attempt: Path) -> dict[str, int]:
    work: Noise = spec.work
    rows = []
    for p, caption in enumerate(work.captions):
        for i in range(work.per_prompt):
            content = png(1000 * len(work.system) + 100 * p + i, work.side, work.comment)
            file = f"p{p}-{i:02d}.png"
            (attempt / file).write_bytes(content)
            rows.append(
                {
                    "image_id": f"p{p}-{i:02d}", "prompt_id": f"p{p}", "caption": caption, "caption_key": "",
                    "system": work.system, "seed": 0, "image_index": i, "guidance_prior": 1.0,
                    "guidance_decoder": GUIDANCE, "steps": 2, "file": file, "sha256": hashlib.sha256(content).hexdigest(),
                    "width": work.side, "height": work.side,
                }
            )  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=GENERATIONS_SCHEMA), attempt / "index.parquet")
    return {"images": len(rows)}


def make_images(
    folder: Path, system: str, prompt_set: str, per_prompt: int, side: int = 16, captions: tuple[str, ...] = CAPTIONS,
    comment: str | None = None, inputs: tuple[Input, ...] = (),
) -> Artifact:  # fmt: skip
    """A folder of generated images as eval makes it, in one part."""
    settings = {"system": system, "prompt_set": prompt_set, "guidance_decoder": GUIDANCE}
    part = PartSpec("00000", inputs, Noise(system, per_prompt, side, captions, comment))
    return run_stage(Stage("generate", 1, folder, settings, [part], write_noise), InProcess())


def fake_run(folder: Path, humaneval: dict[str, Any] | None = None) -> Run:
    """A run with the generated images that a study needs: two of a caption, and 16 for grids."""
    run = Run.open(fake_config(folder, humaneval))
    for system in ("unclip", "glide"):
        make_images(run.folder / "generations" / system / "captions-0", system, "captions", 2)
        make_images(run.folder / "generations" / system / "grids-0", system, "grids", 16)
    return run


def draw_again(run: Run) -> None:
    """Other images in one of the folders, as after a model was trained again."""
    other, folder = (Input("@images", "other"),), run.folder / "generations" / "unclip" / "captions-0"
    make_images(folder, "unclip", "captions", 2, captions=CAPTIONS[::-1], inputs=other)
