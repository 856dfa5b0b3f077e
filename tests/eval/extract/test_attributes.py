"""The attribute judge: what counts as right, what chance is, and a tiny classifier that really learns."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.pipeline.errors import UserError
from data.sources import scene_world as world
from eval.extract.attributes import (
    AttributeExtractor,
    Vocabulary,
    augment,
    load_classifier,
    save_classifier,
    train_classifier,
)
from eval.metrics.accuracy import judge_one_object, judge_two_objects
from eval.settings import AttributeSettings

COLOURS, GROUNDS = ("blue", "green", "red"), ("black", "white")
VOCABULARY = {"background": GROUNDS, "colour": COLOURS}


def logits(colours: list[tuple[str, ...]], grounds: list[str]) -> dict[str, np.ndarray]:
    return {
        "colour": np.array([[float(c in seen) for c in COLOURS] for seen in colours]),
        "background": np.array([[float(g == ground) for g in GROUNDS] for ground in grounds]),
    }


def test_only_named_attributes_of_one_object_captions_are_judged():
    named = [
        {"objects": [{"colour": "red"}], "background": "black"},
        {"objects": [{}], "background": "black"},
        {"objects": [{"colour": "blue"}]},
        {"objects": [{"colour": "red"}, {"colour": "blue"}], "background": "black"},
        {},
    ]
    seen = logits([("red",)] * 5, ["black", "white", "black", "white", "white"])
    found = judge_one_object(seen, VOCABULARY, named)
    assert found["colour"].rows.tolist() == [0, 2]
    assert found["colour"].right.tolist() == [True, False]
    assert found["background"].right.tolist() == [True, False]
    assert found["colour"].chance.tolist() == pytest.approx([1 / 3, 1 / 3])
    both = found["colour+background"]
    assert (both.rows.tolist(), both.right.tolist()) == ([0], [True])
    assert both.chance.tolist() == pytest.approx([1 / 6])


def test_two_objects_need_every_named_colour():
    named = [
        {"objects": [{"colour": "red"}, {"colour": "blue"}], "background": "black"},
        {"objects": [{"colour": "green"}, {}]},
        {"objects": [{"colour": "red"}]},
    ]
    found = judge_two_objects(
        logits([("blue", "red"), ("blue", "red"), ("red",)], ["black"] * 3), VOCABULARY, named, ["background"]
    )
    assert found["colour"].right.tolist() == [True, False]
    assert found["colour"].chance.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert found["background"].rows.tolist() == [0]
    assert "colour+background" not in found


def test_chance_is_what_a_guesser_reaches():
    rng = np.random.default_rng(0)
    named = [{"objects": [{"colour": COLOURS[i % 3]}, {"colour": COLOURS[(i + 1) % 3]}]} for i in range(3000)]
    found = judge_two_objects({"colour": rng.normal(size=(3000, 3))}, {"colour": COLOURS}, named, [])["colour"]
    assert found.right.mean() == pytest.approx(found.chance.mean(), abs=0.03)


def test_a_value_that_no_training_scene_has_is_named():
    named, logits = [{"objects": [{"colour": "mauve"}]}], {"colour": np.zeros((1, 3))}
    with pytest.raises(UserError, match="'mauve', which none of .* training scenes has .* larger dataset"):
        judge_one_object(logits, {"colour": COLOURS}, named)
    with pytest.raises(UserError, match="mauve"):
        judge_two_objects(logits, {"colour": COLOURS}, [{"objects": [*named[0]["objects"], {}]}], [])


def scenes(start: int, n: int, side: int = 16) -> tuple[np.ndarray, list[dict]]:
    found = [world.scene(0, i) for i in range(start, start + n)]
    images = [np.asarray(world.draw(s, 64).resize((side, side), Image.Resampling.BOX)) for s in found]
    return np.stack(images), [s.attributes() for s in found]


@pytest.fixture(scope="module")
def trained():
    return train_classifier(*scenes(0, 1500), AttributeSettings(steps=120, batch=64, width=12, lr=5e-3), seed=0)


def test_vocabulary_comes_from_the_data():
    vocabulary = Vocabulary.of(scenes(0, 200, side=8)[1])
    assert vocabulary.objects["shape"] == sorted(world.SHAPES)
    assert vocabulary.scene == {"background": sorted(world.BACKGROUNDS), "texture": sorted(world.TEXTURES)}
    targets = vocabulary.targets(
        [
            {
                "objects": [{"shape": "ring", "colour": "red", "size": "small", "position": "left"}],
                "background": "grey",
                "texture": "plain",
            }
        ]
    )
    assert all(t.sum() == 1 for t in targets.values())
    assert targets["shape"][0, vocabulary.objects["shape"].index("ring")] == 1


def test_a_tiny_classifier_beats_chance_on_held_out_scenes(trained, tmp_path):
    network, vocabulary = trained
    save_classifier(tmp_path, network, vocabulary, 16, AttributeSettings(width=12))
    classifier = load_classifier(tmp_path)
    images, truths = scenes(5000, 300)
    features, found = classifier.run(images, batch=77)
    judged = judge_one_object(found, vocabulary.heads, truths)
    assert features.shape == (300, 64)
    assert judged["background"].right.mean() > 0.9
    assert judged["colour"].right.mean() > 3 * judged["colour"].chance.mean()
    np.testing.assert_allclose(features, classifier.run(images, batch=300)[0], atol=1e-4)
    arrays = AttributeExtractor(tmp_path, "00").extract(images)
    assert arrays.keys() == {"feature", *(f"logits/{head}" for head in vocabulary.heads)}
    np.testing.assert_allclose(arrays["logits/colour"], found["colour"], atol=1e-4)


def test_training_is_a_function_of_its_seed():
    images, truths = scenes(0, 64)
    settings = AttributeSettings(steps=3, batch=16, width=4)
    a, b, c = (train_classifier(images, truths, settings, seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train_classifier(*scenes(0, 16), AttributeSettings(steps=1, batch=4, width=4), seed=9)
    assert torch.equal(torch.rand(1), expected)


def test_augmentation_moves_by_at_most_a_pixel():
    x = torch.full((64, 3, 16, 16), -1.0)
    x[:, :, 8, 8] = 1.0
    brightest = augment(x, torch.Generator().manual_seed(0)).mean(dim=1).flatten(1).argmax(dim=1)
    y, column = brightest // 16, brightest % 16
    assert int((y - 8).abs().max()) == 1
    assert int((column - 8).abs().max()) == 1
