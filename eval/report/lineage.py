"""The run's lineage as a picture: which artifact was made from which, by which command, stale or not and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from data.pipeline.artifacts import fingerprint
from data.pipeline.lineage import Node, row_of

SHOWN = 12  # hexadecimal digits of a digest
WIDTH, HEIGHT = 0.9, 0.62  # of a box, in units of the grid
COLOURS = {"complete": "#e8f1f4", "stale": "#fbe0c3", "incomplete": "#eeeeee"}


@dataclass(frozen=True)
class Box:
    """An artifact of the picture, or a family of `count` of them (`generations/*/*`) as one. `level` is its row, 0 the first."""

    name: str
    count: int
    digest: str | None
    command: str
    state: str
    made_from: tuple[str, ...]
    level: int


def boxes(nodes: Sequence[Node]) -> list[Box]:
    """One box a node, one for all of a family; each below everything that it was made from."""
    family = {node.name: _family(node.name) for node in nodes}
    members: dict[str, list[Node]] = {}
    for node in nodes:
        members.setdefault(family[node.name], []).append(node)
    made_from = {
        name: tuple(dict.fromkeys(family[of] for node in found for of in node.made_from if of in family))
        for name, found in members.items()
    }
    levels: dict[str, int] = {}
    for name in members:
        _level(name, made_from, levels, ())
    return [_box(name, found, made_from[name], levels[name]) for name, found in members.items()]


def _family(name: str) -> str:
    row = row_of(name)
    return row.name if row is not None else name


def _level(name: str, made_from: dict[str, tuple[str, ...]], levels: dict[str, int], path: tuple[str, ...]) -> int:
    if name not in levels:
        before = [of for of in made_from[name] if of != name and of not in path]
        levels[name] = max((_level(of, made_from, levels, (*path, name)) + 1 for of in before), default=0)
    return levels[name]


def _box(name: str, members: Sequence[Node], made_from: tuple[str, ...], level: int) -> Box:
    digests = [node.digest for node in members]
    digest = digests[0] if len(members) == 1 else fingerprint(digests)
    incomplete, stale = any(d is None for d in digests), any(node.stale for node in members)
    state = "incomplete" if incomplete else "stale" if stale else "complete"
    return Box(name, len(members), None if incomplete else digest, members[0].command, state, made_from, level)


def without_implied(made_from: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What each is made from, without what it is made from by way of another."""
    others = {name: [of for of in ofs if of != name] for name, ofs in made_from.items()}
    behind: dict[str, set[str]] = {}

    def all_behind(name: str) -> set[str]:
        if name not in behind:
            behind[name] = set()
            behind[name] = set(others[name]).union(*(all_behind(of) for of in others[name]))
        return behind[name]

    return {
        name: [of for of in ofs if not any(of in all_behind(other) for other in ofs if other != of)]
        for name, ofs in others.items()
    }


def draw_lineage(nodes: Sequence[Node]) -> Figure:
    """Boxes level by level, an arrow from each artifact to what is made from it; orange is stale, grey incomplete."""
    found = boxes(nodes)
    direct = without_implied({box.name: box.made_from for box in found})
    levels = [[box for box in found if box.level == i] for i in range(1 + max((b.level for b in found), default=0))]
    broadest = max(map(len, levels))
    place = {
        box.name: ((i + 0.5) * broadest / len(level), -y)
        for y, level in enumerate(levels)
        for i, box in enumerate(level)
    }
    figure = Figure(figsize=(max(4.0, 2.2 * broadest), 0.95 * len(levels) + 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    for box in found:
        for of in direct[box.name]:
            _draw_arrow(axes, place[of], place[box.name])
        _draw_box(axes, box, *place[box.name])
    axes.set_xlim(0, broadest)
    axes.set_ylim(0.5 - len(levels), 0.5)
    axes.axis("off")
    return figure


def _draw_box(axes: Axes, box: Box, x: float, y: float) -> None:
    corner, style = (x - WIDTH / 2, y - HEIGHT / 2), "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch(corner, WIDTH, HEIGHT, style, facecolor=COLOURS[box.state], edgecolor="#5d6970", linewidth=0.8, zorder=2)
    )  # fmt: skip
    named = box.name if box.count == 1 else f"{box.name} ({box.count})"
    lines = [(0.17, named, 8.5, "bold"), (0.0, (box.digest or box.state)[:SHOWN], 7.5, "normal")]
    lines.append((-0.17, box.command if box.state == "complete" else f"{box.state}: {box.command}", 7.5, "normal"))
    for dy, text, size, weight in lines:
        axes.text(x, y + dy, text, fontsize=size, weight=weight, ha="center", va="center", zorder=3, parse_math=False)


def _draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From the lower edge of one box to the upper edge of another, behind the boxes; around those between."""
    outward = -0.2 if start[0] > end[0] else 0.2
    bend = outward if start[1] - end[1] > 1 else 0.0
    axes.annotate(
        "", xy=(end[0], end[1] + HEIGHT / 2), xytext=(start[0], start[1] - HEIGHT / 2), zorder=1,
        arrowprops={"arrowstyle": "-|>", "color": "#9aa5ab", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0,
            "connectionstyle": f"arc3,rad={bend}"},
    )  # fmt: skip
