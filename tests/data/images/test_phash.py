"""Perceptual hashes: imagehash's own bits, and an index that finds exactly what comparing everything with everything finds."""

import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks import SHARED
from data.images.phash import _masks, _sorted_rows, near_any, near_pairs_between, near_values, phash64
from tests.data.made_dataset import photo

PHOTOS = SHARED / "photos" / "images"


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """Pairs (i, j), i < j, of hashes that differ in at most `distance` bits (0 to 7); int64 (m, 2), sorted.

    Equal hashes are one node: each is paired with the first of its kind only, and only firsts are paired with other values.
    So a million equal hashes give a million pairs, and everything within the distance is still joined through the firsts.
    """
    values, first, kind = np.unique(np.asarray(hashes, np.uint64), return_index=True, return_inverse=True)
    later = np.flatnonzero(first[kind] != np.arange(len(kind)))
    equal = np.stack([first[kind[later]], later], axis=1)
    near = np.sort(first[near_values(values, distance)], axis=1)
    return _sorted_rows(np.concatenate([equal, near]))


def planted(n: int, distance: int, seed: int = 0) -> NDArray[np.uint64]:
    """Random hashes, a quarter of which differ from another one in 0 to distance + 2 bits."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, n, dtype=np.uint64)
    for i in range(n // 4):
        bits = rng.choice(64, rng.integers(0, distance + 3), replace=False)
        hashes[n // 2 + i] = hashes[i] ^ np.uint64(sum(1 << int(b) for b in bits))
    return rng.permutation(hashes)


@pytest.mark.parametrize("side", [1, 7, 64, 300])
def test_the_hash_is_imagehashs(side: int) -> None:
    for seed in range(3):
        rgb = photo(seed, side)
        assert f"{phash64(rgb):016x}" == str(imagehash.phash(Image.fromarray(rgb)))


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 5, 7])
def test_the_index_is_exact(distance: int) -> None:
    hashes = np.unique(planted(3000, distance))
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.argwhere(np.triu(apart <= distance, 1))
    assert len(expected) > 50 or distance == 0
    assert np.array_equal(near_pairs(hashes, distance), expected)


def test_the_index_is_exact_for_every_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """How finely the bits are cut depends on how many hashes there are; all ways must find the same."""
    hashes = np.unique(planted(1500, 3, seed=1))
    expected = near_pairs(hashes, 3)
    for pretended in (10, 10**5, 10**7, 10**9):
        masks = _masks(3, pretended)
        monkeypatch.setattr("data.images.phash._masks", lambda distance, n, masks=masks: masks)
        assert np.array_equal(near_pairs(hashes, 3), expected)
        monkeypatch.undo()
    assert len({len(_masks(3, n)) for n in (10, 10**5, 10**9)}) > 1


def test_equal_hashes_cost_one_pair_each() -> None:
    """A million uniform images have one hash: all pairs of them would be 10^12."""
    hashes = np.concatenate([np.full(200_000, 7, np.uint64), np.array([6, 2**63], np.uint64)])
    pairs = near_pairs(hashes, 1)
    assert len(pairs) == 200_000
    assert [0, 200_000] in pairs.tolist() and 200_001 not in pairs
    assert (pairs[:, 0] == 0).all()


@pytest.mark.parametrize("distance", [0, 3])
def test_between_two_lists_and_any(distance: int) -> None:
    hashes, others = planted(800, distance), planted(800, distance)[::3]
    near = np.bitwise_count(hashes[:, None] ^ others[None]) <= distance
    assert near.any() and np.array_equal(near_pairs_between(hashes, others, distance), np.argwhere(near))
    assert np.array_equal(near_any(hashes, others, distance), near.any(axis=1))
    many = np.concatenate([others, np.random.default_rng(5).integers(0, 2**64, 2000, dtype=np.uint64)])
    assert np.array_equal(
        near_any(hashes, many, distance), (np.bitwise_count(hashes[:, None] ^ many[None]) <= distance).any(axis=1)
    )


def test_nothing_is_near_nothing() -> None:
    empty, one = np.empty(0, np.uint64), np.array([1], np.uint64)
    assert near_pairs(empty, 3).shape == near_pairs(one, 3).shape == near_pairs_between(empty, one, 3).shape == (0, 2)
    assert near_any(one, empty, 3).tolist() == [False]


@pytest.mark.parametrize("distance", [-1, 8])
def test_distances_that_the_index_is_not_made_for_are_refused(distance: int) -> None:
    with pytest.raises(ValueError, match=f"distance must be 0 to 7 bits, got {distance}"):
        near_pairs(np.array([1, 2], np.uint64), distance)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photographs are not here")
def test_copies_of_photographs_are_near_and_other_photographs_are_not() -> None:
    from tests.data.made_dataset import encoded

    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(PHOTOS.glob("*.jpg"))[:40]]
    hashes = np.array([phash64(rgb) for rgb in pictures], np.uint64)
    assert len(near_pairs(hashes, 7)) == 0
    import io

    for quality, factor in ((95, 1.0), (50, 1.0), (90, 0.5)):
        copies = []
        for rgb in pictures:
            small = Image.fromarray(rgb).resize((int(rgb.shape[1] * factor), int(rgb.shape[0] * factor)))
            content = encoded(np.asarray(small), "JPEG", quality=quality)
            copies.append(phash64(np.asarray(Image.open(io.BytesIO(content)))))
        apart = np.bitwise_count(hashes ^ np.array(copies, np.uint64))
        assert (apart <= 3).mean() >= 0.97, (quality, factor, apart)
