"""What a config may say about the human preference study, and whether the rest of the config can give what it asks for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from data.pipeline.config import Config, Section, Settings

GRID_SIDE = 4
GRID_CELLS = GRID_SIDE * GRID_SIDE
# Kinds of question, in the order in which a rater meets them.
KINDS = ("photorealism", "caption_similarity", "diversity")


class ComparedSystem(Settings):
    """A row of `[systems]`, and the decoder guidance scale whose images are judged (left out: `eval.grid_guidance`)."""

    name: str
    guidance: float | None = None


class QuestionCounts(Settings):
    """Captions asked about, by kind of question; left out: every caption there are generated images for. The paper: 1000 each."""

    photorealism: int | None = Field(default=None, ge=0)
    caption_similarity: int | None = Field(default=None, ge=0)
    diversity: int | None = Field(default=None, ge=0)


class SimulatedRaters(Settings):
    """Raters played by a program, for tests and the demo; none unless a profile asks.

    `noise` is the spread of their judgement beside `contrast` differences of the order of 0.1; below `indecision` they answer
    "not sure".
    """

    raters: int = Field(default=0, ge=0, le=10_000)
    noise: float = Field(default=0.1, ge=0)
    indecision: float = Field(default=0.02, ge=0)


class HumanevalSettings(Section):
    """Two systems (left out: the first rows of `[systems]` that are not the other one), three kinds of question. What `volatile` names
    shapes how answers are collected, never the study's content."""

    section: ClassVar[str] = "humaneval"
    owns: ClassVar[tuple[str, ...]] = ("humaneval/study",)
    volatile: ClassVar[tuple[str, ...]] = ("database", "lease_minutes", "questions_per_rater", "simulated")
    system_a: ComparedSystem | None = None
    system_b: ComparedSystem | None = None
    prompt_set: str = "captions"
    grid_prompt_set: str = "grids"
    questions: QuestionCounts = QuestionCounts()
    questions_per_rater: int = Field(default=20, ge=1)  # of each kind
    lease_minutes: float = Field(default=30.0, gt=0)
    database: str | None = None  # SQLAlchemy URL; None: SQLite at <run>/humaneval/ratings.sqlite
    simulated: SimulatedRaters = SimulatedRaters()

    def kinds_of(self, prompt_set: str) -> list[str]:
        """Kinds of question that are asked about images of a prompt set."""
        sets = {kind: self.grid_prompt_set if kind == "diversity" else self.prompt_set for kind in KINDS}
        return [kind for kind in KINDS if sets[kind] == prompt_set and getattr(self.questions, kind) != 0]


@dataclass(frozen=True)
class Arm:
    """One side of the comparison, with every default filled in."""

    name: str
    guidance: float


def compared(config: Config) -> tuple[Arm, Arm] | None:
    """System a and system b; None where the config names fewer than two systems, so that there is nothing to compare."""
    settings = config[HumanevalSettings]
    a = settings.system_a or _first_row_but(config, settings.system_b)
    b = settings.system_b or _first_row_but(config, a)
    return None if a is None or b is None else (_arm(config, a), _arm(config, b))


def _first_row_but(config: Config, other: ComparedSystem | None) -> ComparedSystem | None:
    """The first row of `[systems]` that is not the other system; None where there is none."""
    names = [name for name in config.at("systems.rows") if other is None or name != other.name]
    return ComparedSystem(name=names[0]) if names else None


def _arm(config: Config, chosen: ComparedSystem) -> Arm:
    return Arm(chosen.name, float(config.at("eval.grid_guidance") if chosen.guidance is None else chosen.guidance))


def asks_for_study(config: Config) -> bool:
    """Whether there are two systems and at least one kind of question."""
    questions = config[HumanevalSettings].questions
    return compared(config) is not None and any(getattr(questions, kind) != 0 for kind in KINDS)


def problem_between_sections(config: Config) -> str | None:
    """Why the systems and images that `[systems]` and `[eval]` give cannot be judged as `[humaneval]` asks; None when they can."""
    arms = compared(config)
    if arms is None or not asks_for_study(config):
        return None
    return next(_problems(config, arms), None)


def _problems(config: Config, arms: tuple[Arm, Arm]) -> Iterator[str]:
    """One after the other, because each takes for granted what the one before it asks."""
    settings = config[HumanevalSettings]
    if problem := _problem_of_systems(config, arms):
        yield problem
    for key, prompt_set in (("prompt_set", settings.prompt_set), ("grid_prompt_set", settings.grid_prompt_set)):
        if kinds := settings.kinds_of(prompt_set):
            if problem := _problem_of_prompt_set(config, key, prompt_set):
                yield problem
            if problem := _problem_of_guidance(config, arms, prompt_set):
                yield problem
            for kind in kinds:
                if problem := _problem_of_questions(config, kind, prompt_set):
                    yield problem


def _problem_of_systems(config: Config, arms: tuple[Arm, Arm]) -> str | None:
    rows = config.at("systems.rows")
    for label, arm in zip("ab", arms, strict=True):
        if arm.name not in rows:
            return f"humaneval.system_{label} is {arm.name!r}, which is no row of [systems]; rows: {', '.join(rows)}"
    if arms[0] == arms[1]:
        return f"humaneval: system_a and system_b are both {arms[0].name} at guidance {arms[0].guidance:g}; compare two"
    return None


def _problem_of_prompt_set(config: Config, key: str, prompt_set: str) -> str | None:
    if prompt_set in (drawn := config.at("eval.prompt_sets")):
        return None
    return f"humaneval.{key} is {prompt_set!r}; eval draws the prompt sets {' and '.join(drawn)}"


def _problem_of_guidance(config: Config, arms: tuple[Arm, Arm], prompt_set: str) -> str | None:
    settings, drawn = config[HumanevalSettings], config.at("eval")
    scales, key = drawn.scales(prompt_set), f"eval.{drawn.scales_key(prompt_set)}"
    for label, chosen, arm in zip("ab", (settings.system_a, settings.system_b), arms, strict=True):
        if arm.guidance not in scales:
            given = chosen is not None and chosen.guidance is not None
            whence = "" if given else ", from eval.grid_guidance"
            kinds = ", ".join(settings.kinds_of(prompt_set))
            return (
                f"humaneval.system_{label} is judged at guidance {arm.guidance:g}{whence}, but eval draws {prompt_set!r} at "
                f"{key} = {', '.join(f'{scale:g}' for scale in scales)}; let them agree, or ask no questions of {kinds}"
            )
    return None


def _problem_of_questions(config: Config, kind: str, prompt_set: str) -> str | None:
    """More questions than prompts, or too few images of a prompt for a grid."""
    drawn, count = config.at("eval.prompt_sets")[prompt_set], getattr(config[HumanevalSettings].questions, kind)
    if count is not None and count > drawn.captions:
        return (
            f"humaneval.questions.{kind} = {count}, but eval.{prompt_set}.captions = {drawn.captions}; "
            "ask for at most that many"
        )
    if kind == "diversity" and drawn.images < GRID_CELLS:
        return (
            f"humaneval.questions.diversity shows {GRID_CELLS} images of a caption, but eval.{prompt_set}.images = "
            f"{drawn.images}; raise it to {GRID_CELLS}, or set humaneval.questions.diversity = 0"
        )
    return None
