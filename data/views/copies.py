"""Which of several copies a view keeps: the first image of a group that no other rule drops with all its pairs.

So a copy is dropped only where another image stands for it. The first is the one in the most protected split (test, val, train), and
there with the smallest key: no evaluation image is lost to a training one. Groups are taken one kind after the other, as their rules
come; an image that stands for its URL may itself give way to another one with its bytes, which then stands for both.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.dataset.splits import PROTECTED
from data.views.settings import ScoreRule


def copies_to_drop(images: pa.Table, rules: Sequence[ScoreRule]) -> dict[str, str]:
    """key -> reason of every image that gives way to a copy. `images` are those that have a pair left: one row each with `key`,
    `split` and the columns of the rules (`unique = true`), which name groups or are null."""
    rank = pc.index_in(images["split"], pa.array(PROTECTED))
    images = images.append_column("rank", rank).sort_by([("rank", "ascending"), ("key", "ascending")])
    left = np.arange(len(images))
    dropped: dict[str, str] = {}
    for rule in rules:
        groups = images[rule.column].combine_chunks().dictionary_encode().indices
        group = pc.fill_null(groups, -1).to_numpy(zero_copy_only=False)[left]
        alone = group < 0
        _, first = np.unique(group[~alone], return_index=True)
        later = np.delete(left[~alone], first)
        dropped.update(dict.fromkeys(images["key"].take(later).to_pylist(), rule.reason))
        left = np.setdiff1d(left, later, assume_unique=True)
    return dropped
