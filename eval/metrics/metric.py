"""A metric as a value, and a number that was measured with it."""

from dataclasses import dataclass
from typing import Literal

from eval.statistics.intervals import Estimate

Direction = Literal["higher", "lower"]
ONE_OBJECT, TWO_OBJECTS = "one object", "two objects"


@dataclass(frozen=True)
class Metric:
    """What a number says. `family` is its row in `eval.metrics.families`, from which direction, unit and citation come.

    `space` is whose features or judgement it rests on ("clip:1234abcd", "attributes", "inception"), `what` the attribute that is
    judged, `scope` the captions or images that it is about ("one object", "two objects"); None where that does not apply.
    """

    family: str
    space: str | None
    what: str | None
    scope: str | None
    direction: Direction
    unit: str
    citation: str

    @property
    def name(self) -> str:
        """How it is shown where one string must do: `fd[clip:1234abcd]`, `attribute_accuracy[colour, two objects]`, `fid`."""
        if self.family == "fid":  # whose space is a part of its definition
            return self.family
        shown = [self.what or self.space, self.scope if self.scope == TWO_OBJECTS else None]
        return f"{self.family}[{', '.join(part for part in shown if part)}]"


@dataclass(frozen=True)
class Measured:
    """An estimate over `n` captions and `images` images. `chance` is what a guesser would reach, where that is known.

    `warnings` also hold for a difference from another measurement; `own_warnings` concern this number's value or interval alone.
    """

    estimate: Estimate
    n: int
    images: int
    warnings: tuple[str, ...] = ()
    own_warnings: tuple[str, ...] = ()
    chance: float | None = None
