"""What a config may say about the human preference study."""

from typing import ClassVar

from pydantic import Field, model_validator

from data.pipeline.config import Section, Settings


class ComparedSystem(Settings):
    """A system's name in `samples/`, and the decoder guidance scale whose samples are judged."""

    name: str
    guidance: float


class QuestionCounts(Settings):
    """Captions asked about, by kind of question; left out: every caption there are samples for. The paper: 1000 each."""

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
    """Two systems, three questions. What `volatile` names shapes how answers are collected, never the study's content."""

    section: ClassVar[str] = "humaneval"
    owns: ClassVar[tuple[str, ...]] = ("humaneval/study",)
    volatile: ClassVar[tuple[str, ...]] = ("database", "lease_minutes", "questions_per_rater", "simulated")
    system_a: ComparedSystem = ComparedSystem(name="unclip", guidance=2.0)
    system_b: ComparedSystem = ComparedSystem(name="glide", guidance=2.0)
    prompt_set: str = "captions"
    grid_prompt_set: str = "grids"
    questions: QuestionCounts = QuestionCounts()
    questions_per_rater: int = Field(default=20, ge=1)  # of each kind
    lease_minutes: float = Field(default=30.0, gt=0)
    database: str | None = None  # SQLAlchemy URL; None: SQLite at <run>/humaneval/ratings.sqlite
    simulated: SimulatedRaters = SimulatedRaters()

    @model_validator(mode="after")
    def _two_systems(self) -> "HumanevalSettings":
        if self.system_a == self.system_b:
            raise ValueError(
                f"system_a and system_b are both {self.system_a.name} at guidance {self.system_a.guidance}; compare two"
            )
        return self
