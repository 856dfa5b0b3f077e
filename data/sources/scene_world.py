"""The synthetic captioned world: flat figures on textured grounds, with captions whose truth is known.

The `demo` and `smoke` profiles learn from this world without a network, and evaluation can say exactly whether a
generated image follows its caption, because each caption carries the attributes that it names.

    s = scene(seed=0, index=17)
    records = captions(s, seed=0, index=17, n=2)       # text, and what the text names
    image = draw(s, side=64)                           # Pillow, RGB
    sample_attributes(s, records)                      # goes into the sample's JSON

Everything is a pure function of (seed, index). The figures are few and large on purpose: at the 16 px base resolution
of the demo decoder a small figure is 6 px wide and must still carry its colour and its shape. The four shapes differ in
their coarse structure (full, tapering, empty corners, empty middle): a disc would be a square that lost four pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

SHAPES = ("square", "triangle", "cross", "ring")
COLOURS: dict[str, RGB] = {
    "red": (222, 28, 34),
    "orange": (255, 136, 0),
    "yellow": (255, 228, 20),
    "green": (24, 160, 50),
    "cyan": (20, 205, 225),
    "blue": (30, 60, 225),
    "pink": (250, 90, 190),
}
SIZES = {"small": 0.42, "large": 0.52}  # width of the figure, in image sides
POSITIONS = {"centre": (0.5, 0.5), "left": (0.24, 0.5), "right": (0.76, 0.5), "top": (0.5, 0.24), "bottom": (0.5, 0.76)}
# The ground's two shades; a plain ground uses the first. Names and tones never meet those of the figures.
BACKGROUNDS: dict[str, tuple[RGB, RGB]] = {
    "white": ((246, 246, 246), (214, 214, 214)),
    "grey": ((136, 136, 136), (108, 108, 108)),
    "black": ((14, 14, 14), (44, 44, 44)),
    "brown": ((112, 66, 34), (86, 48, 22)),
}
TEXTURES = ("plain", "striped", "checked")

JITTER = 0.02  # figures sit this far from their position at most, in image sides: no two scenes have equal bytes
PERIOD = 0.25  # of stripes and checks, in image sides: 4 px at 16 px, so a texture survives the base resolution
SUPERSAMPLE = 4

# How often a caption names an attribute. Colour and background together: .94 ** 2 = .88 of one-figure captions.
NAMED = {"shape": 0.90, "colour": 0.94, "size": 0.40, "position": 0.50, "background": 0.94, "texture": 0.30}
_SIDES = {"left": "on the left", "right": "on the right"}
PLACE = {"centre": "in the centre", **_SIDES, "top": "at the top", "bottom": "at the bottom"}


@dataclass(frozen=True)
class Thing:
    """One figure. `offset` is its displacement from the named position in image sides, `tint` scales its brightness."""

    shape: str
    colour: str
    size: str
    position: str
    offset: tuple[float, float] = (0.0, 0.0)
    tint: float = 1.0


@dataclass(frozen=True)
class Scene:
    """One or two figures on a ground. `phase` in [0, 1) shifts the texture by that share of its period."""

    objects: tuple[Thing, ...]
    background: str
    texture: str
    phase: float = 0.0

    def attributes(self) -> dict:
        things = [{"shape": t.shape, "colour": t.colour, "size": t.size, "position": t.position} for t in self.objects]
        return {"objects": things, "background": self.background, "texture": self.texture}


@dataclass(frozen=True)
class CaptionRecord:
    """`named` has the form of `Scene.attributes()` with only what `text` names; objects keep the scene's order."""

    text: str
    named: dict


def scene(seed: int, index: int, two_objects: float = 0.25) -> Scene:
    """Scene `index` of world `seed`; a share `two_objects` of the scenes has two figures, of different colours."""
    rng = np.random.default_rng([seed, index, 0])
    positions: tuple[str, ...]
    if rng.random() < two_objects:  # noqa: SIM108
        positions = ("left", "right") if rng.random() < 0.5 else ("top", "bottom")
    else:
        positions = (_pick(rng, POSITIONS),)
    colours = rng.permutation(list(COLOURS))[: len(positions)].tolist()
    things = tuple(_thing(rng, colour, position) for colour, position in zip(colours, positions, strict=True))
    return Scene(things, _pick(rng, BACKGROUNDS), _pick(rng, TEXTURES), float(rng.random()))


def captions(scene: Scene, seed: int, index: int, n: int = 2) -> list[CaptionRecord]:
    """`n` captions, different from each other where 20 tries find such; each leaves out attributes at random."""
    rng = np.random.default_rng([seed, index, 1])
    records: list[CaptionRecord] = []
    for _ in range(n):
        for _ in range(20):
            record = _caption(scene, rng)
            if record.text not in {r.text for r in records}:
                break
        records.append(record)
    return records


def sample_attributes(scene: Scene, records: list[CaptionRecord]) -> dict:
    """The truth for the sample's JSON: the scene's attributes, and `named`, one entry for each caption in order."""
    return {**scene.attributes(), "named": [record.named for record in records]}


def draw(scene: Scene, side: int = 64) -> Image.Image:
    """RGB, side x side, anti-aliased by averaging SUPERSAMPLE x SUPERSAMPLE points a pixel."""
    big = side * SUPERSAMPLE
    image = Image.new("RGB", (big, big), BACKGROUNDS[scene.background][0])
    pen = ImageDraw.Draw(image)
    _draw_texture(pen, scene, big)
    for thing in scene.objects:
        _draw_thing(pen, thing, big)
    return image.reduce(SUPERSAMPLE)


def _pick(rng: np.random.Generator, names: Iterable[str]) -> str:
    names = tuple(names)
    return names[int(rng.integers(len(names)))]


def _thing(rng: np.random.Generator, colour: str, position: str) -> Thing:
    dx, dy = rng.uniform(-JITTER, JITTER, 2)
    tint = float(rng.uniform(0.92, 1.0))
    return Thing(_pick(rng, SHAPES), colour, _pick(rng, SIZES), position, (float(dx), float(dy)), tint)


# --- captions ---


def _caption(scene: Scene, rng: np.random.Generator) -> CaptionRecord:
    truth = scene.attributes()
    named: dict = {"objects": [_keep(rng, thing) for thing in truth["objects"]]}
    if len(truth["objects"]) == 2:
        _name_both_places_or_none(truth, named)
    named |= _keep(rng, {"background": scene.background, "texture": scene.texture})
    figures, ground = _figures(named["objects"], rng), _ground(named, rng)
    return CaptionRecord(_sentence(figures, ground, rng), named)


def _keep(rng: np.random.Generator, attributes: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if rng.random() < NAMED[name]}


def _name_both_places_or_none(truth: dict, named: dict) -> None:
    """The words that place two figures ("above", "on the left and ... on the right") place both at once."""
    first, second = named["objects"]
    if "position" in first:
        second["position"] = truth["objects"][1]["position"]
    else:
        second.pop("position", None)


def _figures(things: list[dict], rng: np.random.Generator) -> str:
    nouns = [_noun(thing) for thing in things]
    if len(things) == 1:
        return f"{nouns[0]} {PLACE[things[0]['position']]}" if "position" in things[0] else nouns[0]
    if "position" not in things[0]:
        first, second = nouns if rng.random() < 0.5 else nouns[::-1]
        return f"{first} {_choose(rng, 'and', 'and', 'next to')} {second}"
    beside = ("to the left of", "to the right of") if things[0]["position"] == "left" else ("above", "below")
    return _choose(
        rng,
        f"{nouns[0]} {beside[0]} {nouns[1]}",
        f"{nouns[1]} {beside[1]} {nouns[0]}",
        f"{nouns[0]} {PLACE[things[0]['position']]} and {nouns[1]} {PLACE[things[1]['position']]}",
    )


def _noun(thing: dict) -> str:
    words = [thing[name] for name in ("size", "colour") if name in thing]
    return _article(" ".join([*words, thing.get("shape", "object")]))


def _ground(named: dict, rng: np.random.Generator) -> str:
    """A phrase with its article and noun ("a striped grey background"), or "" when the caption names nothing of it."""
    words = [named[name] for name in ("texture", "background") if name in named]
    return _article(" ".join([*words, _choose(rng, "background", "background", "ground")])) if words else ""


def _sentence(figures: str, ground: str, rng: np.random.Generator) -> str:
    opening = _choose(rng, "", "", "there is ", "a picture of ", "a drawing of ")
    if not ground:
        return opening + figures
    return _choose(
        rng,
        f"{opening}{figures} on {ground}",
        f"{opening}{figures} on {ground}",
        f"{opening}{figures} against {ground}",
        f"{ground} with {figures}",
        f"on {ground} there is {figures}",
    )


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _choose(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


# --- drawing; `big` is the side of the supersampled canvas in its own pixels ---


def _draw_texture(pen: ImageDraw.ImageDraw, scene: Scene, big: int) -> None:
    if scene.texture == "plain":
        return
    shade = BACKGROUNDS[scene.background][1]
    half, shift = PERIOD * big / 2, (scene.phase - 1) * PERIOD * big
    starts = [shift + 2 * half * k for k in range(int(1 / PERIOD) + 2)]
    for y in starts:
        if scene.texture == "striped":
            pen.rectangle((0, y, big, y + half - 1), fill=shade)
            continue
        for x in starts:
            pen.rectangle((x, y, x + half - 1, y + half - 1), fill=shade)
            pen.rectangle((x + half, y + half, x + 2 * half - 1, y + 2 * half - 1), fill=shade)


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, big: int) -> None:
    x, y = ((p + d) * big for p, d in zip(POSITIONS[thing.position], thing.offset, strict=True))
    r = SIZES[thing.size] * big / 2
    fill = tuple(round(channel * thing.tint) for channel in COLOURS[thing.colour])
    if thing.shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    elif thing.shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=fill)
    elif thing.shape == "cross":
        arm = 0.40 * r  # thin enough that the corners stay empty at 6 px, thick enough for the colour
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
    else:  # a ring: an outline leaves the hole open, so that the ground's texture shows through it
        pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=round(0.56 * r))
