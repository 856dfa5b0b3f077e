"""Looking at a cache: the images nearest to a caption, an image or a stored sample, by exact search over the parts."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from data.dataset.shards import ShardReader
from data.pipeline.artifacts import publish_bytes
from data.pipeline.errors import Code, UserError
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.terminal import printable
from data.reports.show import Shown, contact_sheet, read_shown
from embed.clip.model import Clip
from embed.reading.mapped import fixed_width
from embed.reading.parts import CacheParts

HEADER, MARGIN, PICTURE = 40, 12, 160  # pixels
TITLE_CHARS = 160


@dataclass(frozen=True)
class Query:
    """What to look near: a unit vector float32 (d,), a title, the key to leave out of the answer, the picture it is of."""

    title: str
    vector: NDArray[np.float32]
    key: str | None = None
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Neighbour:
    key: str
    cosine: float


def caption_query(clip: Clip, caption: str) -> Query:
    vector = clip.encode_text(clip.tokenize([caption]))[0]
    return Query(f"caption: {printable(caption)}", vector.numpy())


def image_query(clip: Clip, path: Path) -> Query:
    """Raises UserError for a file that is no image."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"--image: there is no file {printable(str(path))}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"--image: {printable(str(path))} cannot be read as an image: {printable(str(error))}"
        ) from None
    raw = clip.encode_pixels(clip.preprocess(image)[None])[0]
    return Query(f"image: {printable(path.name)}", torch.nn.functional.normalize(raw, dim=-1).numpy(), None, image)


def key_query(run: Run, key: str) -> Query:
    """The stored image embedding of a sample. Raises UserError for an unknown key."""
    parts = CacheParts(run.embeddings, None, None, None)
    for unit, part, _ in parts.walk(parts.units):
        keys = fixed_width(part.columns(unit.group, ["key"])["key"])
        rows = np.flatnonzero(keys == key.encode())
        if len(rows):
            vectors = part.matrix(unit.group, "image_embedding", np.dtype("<f2"), parts.dim)
            picture = Image.fromarray(ShardReader(run.dataset).image(key))
            return Query(f"sample {printable(key)}", _units(vectors[rows[:1]])[0], key, picture)
    raise UserError(
        f"--key: no sample in {parts.folder} has the key {printable(key)!r}; `python -m data show` prints some"
    )


def nearest(run: Run, query: Query, n: int, view: str | None = None, split: str | None = None) -> list[Neighbour]:
    """The `n` images with the largest cosine, each once, largest first; those of a view and a split where named. Raises UserError for a
    view that is stale, or where no image is left."""
    parts = CacheParts(run.embeddings, Lineage(run).require(f"views/{view}") if view else None, split, None)
    if len(query.vector) != parts.dim:
        raise UserError(f"the query has {len(query.vector)} components, the cache {parts.dim}")
    best_keys, best = np.zeros(0, "S1"), np.zeros(0, np.float32)
    for unit, part, keep in parts.walk(parts.units):
        keys = fixed_width(part.columns(unit.group, ["key"])["key"])
        rows = np.arange(len(keys)) if keep is None else np.flatnonzero(keep)
        _, first = np.unique(keys[rows], return_index=True)
        rows = rows[first]
        rows = rows[keys[rows] != (query.key or "").encode()]
        vectors = part.matrix(unit.group, "image_embedding", np.dtype("<f2"), parts.dim)
        best_keys = np.concatenate([best_keys, keys[rows]])
        best = np.concatenate([best, _units(vectors[rows]) @ query.vector])
        # A key may go on in the next row group; of equal ones the first stands.
        _, first = np.unique(best_keys, return_index=True)
        order = first[np.lexsort((best_keys[first], -best[first]))][:n]
        best_keys, best = best_keys[order], best[order]
    if not len(best):
        raise UserError(f"no image is left in view {view or '(none)'} and split {split or '(any)'}", Code.EMPTY)
    return [Neighbour(key.decode(), float(cosine)) for key, cosine in zip(best_keys, best, strict=True)]


def read_neighbours(run: Run, found: Sequence[Neighbour], view: str | None) -> list[Shown]:
    """What is printed and drawn of them; the note tells the cosine."""
    shown = read_shown(run, [neighbour.key for neighbour in found], view, None)
    return [replace(s, note=f"cosine {neighbour.cosine:.4f}") for s, neighbour in zip(shown, found, strict=True)]


def table(query: Query, found: Sequence[Neighbour], shown: Sequence[Shown]) -> str:
    lines = [f"nearest to {query.title[:TITLE_CHARS]}", f"{'cosine':>7}  {'key':<10} {'split':<6} first caption"]
    for neighbour, sample in zip(found, shown, strict=True):
        lines.append(f"{neighbour.cosine:7.4f}  {neighbour.key:<10} {sample.split:<6} {sample.captions[0][:100]}")
    return "\n".join(lines)


def write_neighbours(run: Run, query: Query, shown: Sequence[Shown], path: Path) -> None:
    """A contact sheet with the query above it, as PNG."""
    import matplotlib

    sheet, above = contact_sheet(run, shown), HEADER
    whole = Image.new("RGB", (max(sheet.width, 2 * PICTURE), sheet.height + HEADER + PICTURE + MARGIN), "white")
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 15)
    title = f"nearest to {query.title}"[:TITLE_CHARS]
    while font.getlength(title) > whole.width - 2 * MARGIN:
        title = title[:-2].rstrip(".") + "."
    pen = ImageDraw.Draw(whole)
    pen.text((MARGIN, MARGIN), title, "#1f2933", font)
    if query.picture is not None:
        small = ImageOps.contain(query.picture, (2 * PICTURE - 2 * MARGIN, PICTURE))
        whole.paste(small, (MARGIN, HEADER))
        above += PICTURE + MARGIN
        pen.line((MARGIN, above - 2, whole.width - MARGIN, above - 2), "#cbd2d9")
    whole.paste(sheet, (0, above))
    out = io.BytesIO()
    whole.crop((0, 0, whole.width, above + sheet.height)).save(out, "PNG")
    publish_bytes(path, out.getvalue())


def _units(vectors: NDArray[np.generic]) -> NDArray[np.float32]:
    single = vectors.astype(np.float32)
    found: NDArray[np.float32] = single / np.linalg.norm(single, axis=1, keepdims=True)
    return found
