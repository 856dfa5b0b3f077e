"""Generated images for the report, as data URLs: grids of many for a caption, and one a scale beside the real image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.dataset.shards import ShardReader
from data.generations import find_generations, read_generations
from data.pipeline.artifacts import Artifact
from data.pipeline.run import Run
from eval.images import read_png, tile
from eval.prompts import Prompt, read_prompts
from eval.report.figures import png_url
from eval.settings import EvalSettings
from training.loop.pixels import reduce_image
from training.settings import SystemsSettings

GRID_SIDE = 4
SIDE_BY_SIDE = 12  # captions shown at every scale


def pictures(run: Run) -> Mapping[str, Any]:
    """`grids`: 4 x 4 images of every system for each caption of the prompt set `grids`, in the order of the systems; `side_by_side`:
    one image a scale for some captions of `captions`."""
    settings, systems = run.config[EvalSettings], list(run.config[SystemsSettings].rows)
    prompts = read_prompts(run.artifact("prompts/grids"))
    of = [_by_prompt(find_generations(run.folder, s, "grids", settings.grid_guidance)) for s in systems]
    grids = [
        {
            "caption": p.caption,
            "images": [png_url(tile(images[p.prompt_id][: GRID_SIDE**2], GRID_SIDE)) for images in of],
        }
        for p in prompts
    ]
    return {
        "guidance": settings.grid_guidance, "grids": grids, "scales": list(settings.guidance),
        "side_by_side": _side_by_side(run, settings, systems),
    }  # fmt: skip


def _side_by_side(run: Run, settings: EvalSettings, systems: Sequence[str]) -> list[dict[str, Any]]:
    prompts = read_prompts(run.artifact("prompts/captions"))
    chosen: list[Prompt] = [
        prompts[i] for i in np.linspace(0, len(prompts) - 1, min(SIDE_BY_SIDE, len(prompts))).astype(int)
    ]
    ids = [p.prompt_id for p in chosen]
    reader = ShardReader(run.dataset)
    of = [[_by_prompt(find_generations(run.folder, s, "captions", g), ids) for g in settings.guidance] for s in systems]
    side = of[0][0][ids[0]].shape[1]
    return [
        {
            "caption": p.caption,
            "real": png_url(reduce_image(reader.image(p.caption_key), side)),
            "systems": [[png_url(images[p.prompt_id][0]) for images in scales] for scales in of],
        }
        for p in chosen
    ]


def _by_prompt(artifact: Artifact, prompts: Sequence[str] | None = None) -> dict[str, NDArray[np.uint8]]:
    """prompt_id -> uint8 (images, h, w, 3) in the order of their number."""
    files: dict[str, list[str]] = {}
    for row in read_generations(artifact).select(["prompt_id", "file"]).to_pylist():
        if prompts is None or row["prompt_id"] in prompts:
            files.setdefault(row["prompt_id"], []).append(row["file"])
    return {p: np.stack([read_png((artifact.folder / f).read_bytes()) for f in names]) for p, names in files.items()}
