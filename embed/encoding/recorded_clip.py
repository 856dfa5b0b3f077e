"""The CLIP that a cache says it was made with, beside the one that the run names now."""

from typing import cast

from data.pipeline.errors import Code, UserError
from data.pipeline.run import Run
from embed.clip.model import Clip, Precision, load_clip
from embed.encoding.devices import choose_device
from embed.format import NULL_PART, read_metadata
from embed.settings import EmbeddingsSettings


def cache_clip(run: Run) -> Clip:
    """The run's CLIP in the precision that its cache was made in. Raises UserError when the cache was made with another one."""
    metadata, clip = compared_clip(run)
    if metadata["clip_identity"] != clip.identity:
        raise UserError(
            f"{other_clip(run, metadata, clip)}: their vectors cannot be compared; use the CLIP it was made with, or delete "
            f"{run.embeddings.folder} and run `make embeddings`",
            Code.FOREIGN,
        )
    return clip


def compared_clip(run: Run) -> tuple[dict[str, str], Clip]:
    """What the cache says of the CLIP it was made with, and the run's CLIP in the same precision, which may be another one."""
    folder = run.embeddings.require("make embeddings").folder
    metadata = read_metadata(str(folder / f"{NULL_PART}.parquet"))
    settings, precision = run.config[EmbeddingsSettings], cast(Precision, metadata["precision"])
    return metadata, load_clip(run, settings.batch, precision, str(choose_device(settings.device)))


def other_clip(run: Run, metadata: dict[str, str], clip: Clip) -> str:
    """That the cache is of another CLIP, in words."""
    return (
        f"{run.embeddings.folder} was made with the CLIP {metadata['clip_name']} ({metadata['clip_identity'][:12]}), "
        f"not with the one in use ({clip.identity[:12]})"
    )


def recorded_name(run: Run, clip: Clip) -> str:
    """A CLIP that was copied or renamed keeps the name under which its cache was begun: its identity decides, not its folder."""
    settings = (run.embeddings.plan_json() or {"settings": {}})["settings"]
    return str(settings["clip.name"]) if settings.get("clip.identity") == clip.identity else clip.name
