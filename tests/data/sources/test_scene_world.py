"""The synthetic world: determinism, captions that name what they say they name, drawings that show the attributes."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from data.sources import scene_world as world

INDICES = range(400)


def words_of(named: dict) -> list[str]:
    """Attribute words that a caption with this truth contains; a place of two figures may be said as a relation."""
    things = named["objects"]
    words = [thing[name] for thing in things for name in ("shape", "colour", "size") if name in thing]
    if len(things) == 1 and "position" in things[0]:
        words.append(things[0]["position"])
    return words + [named[name] for name in ("background", "texture") if name in named]


def colour_at(image, x: float, y: float) -> np.ndarray:
    """Pixel at (x, y) in image sides, as integers."""
    return np.asarray(image, dtype=int)[int(y * image.height), int(x * image.width)]


def test_a_scene_is_a_function_of_seed_and_index():
    assert world.scene(3, 5) == world.scene(3, 5)
    assert world.captions(world.scene(3, 5), 3, 5) == world.captions(world.scene(3, 5), 3, 5)
    assert world.draw(world.scene(3, 5)).tobytes() == world.draw(world.scene(3, 5)).tobytes()


def test_another_seed_or_index_gives_another_world():
    first = [world.scene(0, i) for i in INDICES]
    assert all(a != b for a, b in zip(first, (world.scene(1, i) for i in INDICES), strict=True))
    assert len({world.draw(s).tobytes() for s in first}) == len(first)


def test_figures_never_have_the_colour_of_their_ground_nor_of_each_other():
    assert not set(world.COLOURS) & set(world.BACKGROUNDS)
    for colour in world.COLOURS.values():
        for shade in (shade for pair in world.BACKGROUNDS.values() for shade in pair):
            assert np.abs(np.subtract(colour, shade)).max() > 60
    for i in INDICES:
        colours = [thing.colour for thing in world.scene(0, i, two_objects=1.0).objects]
        assert len(set(colours)) == 2


def test_what_a_caption_names_is_in_its_text_and_true():
    for i in INDICES:
        scene = world.scene(0, i)
        for text, named in ((r.text, r.named) for r in world.captions(scene, 0, i, n=3)):
            for word in words_of(named):
                assert word in text.split(), (text, named)
            truth = scene.attributes()
            assert all(truth[name] == named[name] for name in ("background", "texture") if name in named)
            for said, true in zip(named["objects"], truth["objects"], strict=True):
                assert said.items() <= true.items()


def test_a_caption_says_no_attribute_that_it_does_not_name():
    vocabulary = {*world.SHAPES, *world.COLOURS, *world.SIZES, *world.BACKGROUNDS, *world.TEXTURES}
    for i in INDICES:
        for record in world.captions(world.scene(0, i), 0, i):
            assert Counter(w for w in record.text.split() if w in vocabulary) == Counter(
                w for w in words_of(record.named) if w in vocabulary
            )


def test_relations_agree_with_the_places():
    for i in INDICES:
        scene = world.scene(0, i, two_objects=1.0)
        first, second = (thing.colour for thing in scene.objects)
        phrases = {" to the left of ": first, " above ": first, " to the right of ": second, " below ": second}
        for record in world.captions(scene, 0, i):
            both_coloured = all("colour" in thing for thing in record.named["objects"])
            for phrase, early in phrases.items():
                if both_coloured and phrase in record.text:
                    assert early in record.text.split(phrase)[0].split()


def test_captions_of_a_scene_differ_and_articles_fit():
    texts = [[r.text for r in world.captions(world.scene(0, i), 0, i, n=3)] for i in INDICES]
    assert all(len(set(group)) == 3 for group in texts)
    for text in (text for group in texts for text in group):
        words = text.split()
        for article, noun in pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (noun[0] in "aeiou"), text


def test_most_captions_of_one_figure_name_colour_and_background():
    records = [r for i in range(2000) for r in world.captions(world.scene(0, i, two_objects=0.0), 0, i)]
    both = np.mean(["colour" in r.named["objects"][0] and "background" in r.named for r in records])
    assert 0.85 < both < 0.91
    assert 0.3 < np.mean(["size" in r.named["objects"][0] for r in records]) < 0.5


def test_the_distribution_is_even():
    scenes = [world.scene(0, i) for i in range(4000)]
    assert 0.22 < np.mean([len(s.objects) == 2 for s in scenes]) < 0.28
    for table, seen in (
        (world.SHAPES, Counter(t.shape for s in scenes for t in s.objects)),
        (world.COLOURS, Counter(t.colour for s in scenes for t in s.objects)),
        (world.SIZES, Counter(t.size for s in scenes for t in s.objects)),
        (world.BACKGROUNDS, Counter(s.background for s in scenes)),
        (world.TEXTURES, Counter(s.texture for s in scenes)),
    ):
        assert set(seen) == set(table)
        assert min(seen.values()) > 0.8 * sum(seen.values()) / len(table)


@pytest.mark.parametrize("side", [16, 64])
@pytest.mark.parametrize("shape", world.SHAPES)
@pytest.mark.parametrize("size", world.SIZES)
def test_the_figure_is_where_and_what_its_scene_says(shape, size, side):
    thing = world.Thing(shape, "red", size, "left")
    image = world.draw(world.Scene((thing,), "white", "plain"), side)
    assert image.mode == "RGB" and image.size == (side, side)
    (x, y), r = world.POSITIONS["left"], world.SIZES[size] / 2
    centre, upper_corner = colour_at(image, x, y), colour_at(image, x + 0.8 * r, y - 0.8 * r)
    red, white = world.COLOURS["red"], world.BACKGROUNDS["white"][0]
    if shape == "ring":
        assert np.abs(centre - white).max() < (150 if side == 16 else 1)
    else:
        assert np.abs(centre - red).max() < 25
    if side == 64:
        assert np.abs(upper_corner - (red if shape == "square" else white)).max() < 110
    assert np.array_equal(colour_at(image, 0.95, 0.5), white)


def test_edges_are_anti_aliased():
    scene = world.Scene((world.Thing("triangle", "red", "large", "centre"),), "white", "plain")
    pixels = np.asarray(world.draw(scene)).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 4


def test_a_texture_is_visible_and_keeps_the_ground_readable():
    for texture in world.TEXTURES:
        for background, shades in world.BACKGROUNDS.items():
            scene = world.Scene((world.Thing("square", "red", "small", "centre"),), background, texture, phase=0.3)
            edge = np.asarray(world.draw(scene), dtype=int)[:, :8].reshape(-1, 3)
            assert (len(np.unique(edge, axis=0)) > 1) == (texture != "plain")
            assert np.abs(edge.mean(0) - shades[0]).max() < 25


def test_sample_attributes_align_with_the_captions():
    scene = world.scene(0, 3)
    records = world.captions(scene, 0, 3)
    truth = world.sample_attributes(scene, records)
    assert truth["named"] == [r.named for r in records]
    assert truth["objects"][0]["colour"] == scene.objects[0].colour
    assert replace(scene, texture="plain").attributes()["texture"] == "plain"
