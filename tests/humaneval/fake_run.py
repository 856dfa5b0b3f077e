"""A run with two fake systems' samples, made as eval makes them: through run_stage, with the shared schema."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

from data.generations import SAMPLES_SCHEMA
from data.pipeline.artifacts import Artifact, PartSpec
from data.pipeline.config import Config, parse_config
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import Stage, run_stage

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


def fake_config(folder: Path, humaneval: dict[str, Any] | None = None) -> Config:
    settings = {
        "system_a": {"name": "unclip", "guidance": GUIDANCE}, "system_b": {"name": "glide", "guidance": GUIDANCE},
        "questions_per_rater": 3, "simulated": {"raters": 4},
    }  # fmt: skip
    tables = {
        "run": {"name": "fake", "folder": str(folder), "seed": 7},
        "cluster": {"workers": 0},
        "dataset": {"scenes": {"samples": 4}},
        "humaneval": settings | (humaneval or {}),
    }
    return parse_config(tables, "fake.toml")


def make_samples(
    folder: Path, system: str, prompt_set: str, per_prompt: int, side: int = 16, captions: tuple[str, ...] = CAPTIONS,
    comment: str | None = None,
) -> Artifact:  # fmt: skip
    """A samples artifact whose images are noise that belongs to (system, prompt, index)."""

    def make(_: PartSpec, attempt: Path) -> dict[str, int]:
        rows = []
        for p, caption in enumerate(captions):
            for i in range(per_prompt):
                content = png(1000 * len(system) + 100 * p + i, side, comment)
                file = f"p{p}-{i:02d}.png"
                (attempt / file).write_bytes(content)
                rows.append(
                    {
                        "image_id": f"p{p}-{i:02d}", "prompt_id": f"p{p}", "caption": caption, "caption_key": "", "system": system,
                        "seed": 0, "sample_index": i, "guidance_prior": 1.0, "guidance_decoder": GUIDANCE, "steps": 2, "file": file,
                        "sha256": hashlib.sha256(content).hexdigest(), "width": side, "height": side,
                    }
                )  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA), attempt / "index.parquet")
        return {"images": len(rows)}

    settings = {"system": system, "prompt_set": prompt_set, "guidance_decoder": GUIDANCE}
    return run_stage(Stage("samples", 1, folder, settings, [PartSpec("00000")], make), InProcess())


def fake_run(folder: Path, humaneval: dict[str, Any] | None = None) -> Run:
    run = Run.open(fake_config(folder, humaneval))
    for system in ("unclip", "glide"):
        make_samples(run.folder / "samples" / system / "captions-0", system, "captions", 2)
        make_samples(run.folder / "samples" / system / "grids-0", system, "grids", 16)
    return run
