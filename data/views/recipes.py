"""Published recipes as rules on scores, and in what a run differs from the published code.

Read in mlfoundations/datacomp, baselines/apply_filter.py (commit 274dbee); the paper is arXiv 2304.14108.

- `datacomp-basic`, `load_uids_with_basic_filter_helper`, lines 200-234: English by fastText's lid.176.bin; more than 2 words
  (`len(text.split()) > 2`) and more than 5 characters (`len(text) > 5`), both strict; shorter side `>= 200` pixels and longer over
  shorter side `<= 3.0`, both inclusive; of the original image.
- `datacomp-clip-top30`, `get_threshold`, lines 375-394, and `load_uids_with_clip_score_helper`, lines 298-334: OpenAI CLIP ViT-L/14
  similarity `>=` the value at place int(0.3 n), counted from 0, of the n scores in falling order; so one pair more than 30 % is
  kept, and all that tie with it. No other filter; n counts the whole pool.
- `laion2b`, the branch of that name in `apply_filter`, and line 324: OpenAI CLIP ViT-B/32 similarity `>= 0.28`, inclusive, and
  English by gcld3.
"""

from collections.abc import Mapping
from typing import Any

from data.scores.captions import LANGUAGE_CHARS, LANGUAGE_MODEL, LANGUAGE_PACKAGE
from data.views.settings import ScoreRule

RECIPES: dict[str, tuple[ScoreRule, ...]] = {
    "datacomp-basic": (
        ScoreRule(scores="basic", column="language", is_in=("en",), name="not_english"),
        ScoreRule(scores="basic", column="caption_words", above=2, name="caption_too_few_words"),
        ScoreRule(scores="basic", column="caption_chars", above=5, name="caption_too_few_chars"),
        ScoreRule(scores="basic", column="min_side", min=200, name="image_too_small"),
        ScoreRule(scores="basic", column="aspect", max=3.0, name="aspect_too_large"),
    ),
    "datacomp-clip-top30": (
        ScoreRule(scores="similarity", column="similarity", top_fraction=0.3, name="similarity_not_in_top"),
    ),
    "laion2b": (
        ScoreRule(scores="basic", column="language", is_in=("en",), name="not_english"),
        ScoreRule(scores="similarity", column="similarity", min=0.28, name="similarity_too_low"),
    ),
}
DETECTORS = {"datacomp-basic": "fastText lid.176.bin on the whole caption", "laion2b": "gcld3"}
CLIPS = {"datacomp-clip-top30": "ViT-L-14", "laion2b": "ViT-B-32"}  # both with OpenAI's weights


def deviations(recipe: str | None, config: Mapping[str, Any], sized_as_in_tar: bool = False) -> list[str]:
    """In words, what differs from the published recipe in a run with this config (`Config.to_dict()`). `sized_as_in_tar`: the
    originals' sizes of some images are not known; that concerns every rule on sizes, also without a recipe."""
    found = []
    if sized_as_in_tar:
        found.append(
            "sizes: images of existing tars whose JSON has no original_width and original_height (counted as sized_as_in_tar in the "
            "manifest of scores/basic) are judged by their size in the tar, not by the original's"
        )
    if recipe in DETECTORS:
        found.append(
            f"language: {LANGUAGE_PACKAGE} with {LANGUAGE_MODEL} on the first {LANGUAGE_CHARS} characters, captions in capitals "
            f"lowered, captions without a letter counted as no language; the recipe uses {DETECTORS[recipe]}"
        )
    if recipe == "datacomp-basic":
        found.append("captions: words and characters are counted after the source made runs of white space one space")
    if recipe in CLIPS:
        clip, image = config.get("clip", {}), config.get("dataset", {}).get("image", {})
        if not _is_openai(clip, CLIPS[recipe]):
            own = ", ".join(f"{name} {value}" for name, value in sorted(clip.items()))
            found.append(f"similarity: the run's own CLIP ({own}); the recipe uses OpenAI's {CLIPS[recipe]}")
        found.append(
            f"similarity: of the images as stored ({image.get('mode')}, {image.get('size')} px); the recipe's of the originals"
        )
    return found


def _is_openai(clip: Mapping[str, Any], model: str) -> bool:
    names = (model, f"{model}-quickgelu")
    return clip.get("source") == "pretrained" and clip.get("model") in names and clip.get("tag") == "openai"
