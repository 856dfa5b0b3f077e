"""Near copies: images whose brightness pattern and rough colours agree.

A perceptual hash sees brightness alone: a red and a green disc of equal brightness have equal hashes. So the mean colours of a
4 x 4 grid must agree too, within a tolerance in each cell. Images with hardly any contrast are left out: their hash is noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.images.phash import near_pairs_between, near_values
from data.scores.settings import DuplicatesSettings


@dataclass(frozen=True)
class Looks:
    """What images look like, n of them: `phash` uint64 (n,), `colours` uint8 (n, 48), `std` of grey values, float (n,)."""

    phash: NDArray[np.uint64]
    colours: NDArray[np.uint8]
    std: NDArray[np.float64]

    def __getitem__(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Looks":
        return Looks(self.phash[rows], self.colours[rows], self.std[rows])


def near_groups(looks: Looks, settings: DuplicatesSettings) -> NDArray[np.int64]:
    """For every image the first row of its group: images that are near each other, through any chain of near ones.

    Images with equal hashes and colours near their first's are linked to it alone, so that a million re-encodings of one
    placeholder cost one comparison each.
    """
    group = np.arange(len(looks.phash))
    rows = np.flatnonzero(looks.std >= settings.min_pixel_std)
    seen = looks[rows]
    leader = _leaders(seen, settings.colour_tolerance)
    nodes = np.flatnonzero(leader == np.arange(len(rows)))
    links = np.stack([leader, np.arange(len(rows))], axis=1)
    links = np.concatenate([links, nodes[_near_nodes(seen[nodes], settings)]])
    group[rows] = rows[first_linked(links, len(rows))]
    return group


def first_linked(links: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """For each of n rows the first row that it is linked to through any chain of `links` (m, 2); itself, where there is none."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = links.T
    _, group = connected_components(coo_array((np.ones(len(one), np.int8), (one, other)), shape=(n, n)), directed=False)
    first = np.full(n, n)
    np.minimum.at(first, group, np.arange(n))
    return first[group]


def near_any_of(looks: Looks, others: Looks, settings: DuplicatesSettings) -> NDArray[np.int64]:
    """For every image a row of `others` that it is near, -1 where there is none. No near one is missed.

    The first of each group of look-alikes is tried first; only images that it does not settle are compared with all.
    """
    ours, theirs = (np.flatnonzero(x.std >= settings.min_pixel_std) for x in (looks, others))
    found = np.full(len(looks.phash), -1)
    leads = _leaders(others[theirs], settings.colour_tolerance) == np.arange(len(theirs))
    for candidates in (theirs[leads], theirs[~leads]):
        waiting = ours[found[ours] < 0]
        found[waiting] = _first_near(looks[waiting], others[candidates], candidates, settings)
    return found


def _first_near(
    looks: Looks, others: Looks, names: NDArray[np.int64], settings: DuplicatesSettings
) -> NDArray[np.int64]:
    """For every image the smallest of `names` (one for each of `others`) among those that it is near, -1 for none."""
    i, j = near_pairs_between(looks.phash, others.phash, settings.distance).T
    alike = _same_colours(looks.colours[i], others.colours[j], settings.colour_tolerance)
    none = np.iinfo(np.int64).max
    found = np.full(len(looks.phash), none)
    np.minimum.at(found, i[alike], names[j[alike]])
    return np.where(found == none, -1, found)


def _same_colours(one: NDArray[np.uint8], other: NDArray[np.uint8], tolerance: int) -> NDArray[np.bool_]:
    difference = np.maximum(one, other) - np.minimum(one, other)
    return np.asarray((difference <= tolerance).all(axis=1))


def _leaders(looks: Looks, tolerance: int) -> NDArray[np.int64]:
    """For every image the first image with the same hash and like colours (itself, where there is none)."""
    leader = np.arange(len(looks.phash))
    open_rows = leader.copy()
    while len(open_rows):
        _, first, kind = np.unique(looks.phash[open_rows], return_index=True, return_inverse=True)
        firsts = open_rows[first[kind]]
        alike = _same_colours(looks.colours[open_rows], looks.colours[firsts], tolerance)
        leader[open_rows[alike]] = firsts[alike]
        open_rows = open_rows[~alike]
    return leader


def _near_nodes(looks: Looks, settings: DuplicatesSettings) -> NDArray[np.int64]:
    """Pairs (i, j), i < j, of nodes with different hashes that are near; int64 (m, 2)."""
    values, kind = np.unique(looks.phash, return_inverse=True)
    near = near_values(values, settings.distance)
    order = np.argsort(kind, kind="stable")
    starts = np.searchsorted(kind[order], np.arange(len(values) + 1))
    sizes = np.diff(starts)
    # Every node of one value with every node of the other.
    counts = sizes[near[:, 0]] * sizes[near[:, 1]]
    link = np.repeat(np.arange(len(near)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    width = sizes[near[link, 1]]
    one = order[starts[near[link, 0]] + within // width]
    other = order[starts[near[link, 1]] + within % width]
    alike = _same_colours(looks.colours[one], looks.colours[other], settings.colour_tolerance)
    return np.sort(np.stack([one[alike], other[alike]], axis=1), axis=1)
