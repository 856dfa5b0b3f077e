"""Raters, leases and ratings: idempotent, safe under concurrent raters, resumable.

A rater asks for a question and gets a lease; the answer is a rating under that lease, so a double click is one rating.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, select, update

from data.pipeline.config import Config
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from humaneval.rating.assignment import Shown, choose_next
from humaneval.rating.database import LEASES, RATERS, RATINGS, database_url, insert_new, open_database, writing
from humaneval.settings import HumanevalSettings
from humaneval.study.study import Study
from humaneval.study.wording import ANSWERS


@dataclass(frozen=True)
class Rater:
    rater: str
    simulated: bool


@dataclass(frozen=True)
class Lease:
    """A question in one rater's hands: which image stands left and which right."""

    lease: str
    question: str
    left_image: str
    right_image: str


@dataclass(frozen=True)
class Rating:
    """One answer with all that analysis needs. `answer` is left, right or not_sure; times are Unix seconds."""

    lease: str
    question: str
    rater: str
    simulated: bool
    consent_version: str
    left_image: str
    right_image: str
    answer: str
    rated_at: float
    response_seconds: float


class Store:
    """Answers to one study. Methods are short transactions, safe from any thread or process."""

    def __init__(
        self, engine: Engine, study: Study, per_kind: int, lease_seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine, self._study, self._clock = engine, study, clock
        self._per_kind, self._lease_seconds = per_kind, lease_seconds

    @classmethod
    def of(cls, run: Run, config: Config, study: Study) -> "Store":
        settings = config[HumanevalSettings]
        engine = open_database(database_url(run, settings))
        return cls(engine, study, settings.questions_per_rater, 60 * settings.lease_minutes)

    def join(self, rater: str | None = None, simulated: bool = False) -> Rater:
        """Record a rater's consent to the study's current wording. Without a token one is drawn. Joining twice is joining once."""
        token = rater or secrets.token_urlsafe(16)
        row = {
            "rater": token, "study": self._study.hash, "simulated": simulated,
            "consent_version": self._study.wording["consent_version"], "joined_at": self._clock(),
        }  # fmt: skip
        with writing(self._engine) as connection:
            insert_new(connection, RATERS, row)
        return Rater(token, simulated)

    def find(self, rater: str) -> Rater | None:
        """The rater with this token in this study, or None."""
        query = select(RATERS.c.simulated).where(RATERS.c.rater == rater, RATERS.c.study == self._study.hash)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return Rater(rater, row.simulated) if row else None

    def next_lease(self, rater: Rater) -> Lease | None:
        """The question that the rater has open, or a new one; None when the rater's share, or the study, is done.

        An expired lease keeps belonging to its rater, who may still answer it; it only no longer keeps others away.
        """
        with writing(self._engine) as connection:
            now = self._clock()
            open_lease = self._open_lease(connection, rater)
            if open_lease is None:
                return self._new_lease(connection, rater, now)
            if open_lease.expires_at <= now:
                renewed = update(LEASES).where(LEASES.c.lease == open_lease.lease)
                connection.execute(renewed.values(leased_at=now, expires_at=now + self._lease_seconds))
            return Lease(open_lease.lease, open_lease.question, open_lease.left_image, open_lease.right_image)

    def answer(self, lease: str, answer: str) -> bool:
        """Store a rating. False when the lease already has one (the first stands) or does not exist."""
        if answer not in ANSWERS:
            raise UserError(f"an answer is one of {', '.join(ANSWERS)}; got {answer!r}")
        with writing(self._engine) as connection:
            query = select(LEASES.c.leased_at).where(LEASES.c.lease == lease, LEASES.c.study == self._study.hash)
            leased_at = connection.scalar(query)
            if leased_at is None:
                return False
            now = self._clock()
            rating = {"lease": lease, "answer": answer, "rated_at": now, "response_seconds": max(0.0, now - leased_at)}
            return insert_new(connection, RATINGS, rating)

    def answered(self, rater: Rater) -> dict[str, int]:
        """How many questions of each kind the rater has answered."""
        done = dict.fromkeys(self._study.kinds, 0)
        query = select(LEASES.c.question).join(RATINGS).where(LEASES.c.rater == rater.rater)
        with self._engine.connect() as connection:
            for question in connection.scalars(query):
                done[self._study.questions[question].kind] += 1
        return done

    def share(self) -> dict[str, int]:
        """How many questions of each kind one rater is asked."""
        kinds = [question.kind for question in self._study.questions.values()]
        return {kind: min(self._per_kind, kinds.count(kind)) for kind in self._study.kinds}

    def ratings(self) -> list[Rating]:
        """Every rating of this study, ordered by rater and question."""
        query = (
            select(
                LEASES.c.lease, LEASES.c.question, LEASES.c.rater, RATERS.c.simulated, RATERS.c.consent_version,
                LEASES.c.left_image, LEASES.c.right_image, RATINGS.c.answer, RATINGS.c.rated_at, RATINGS.c.response_seconds,
            )
            .select_from(RATINGS.join(LEASES).join(RATERS))
            .where(LEASES.c.study == self._study.hash)
            .order_by(LEASES.c.rater, LEASES.c.question)
        )  # fmt: skip
        with self._engine.connect() as connection:
            return [Rating(**row._mapping) for row in connection.execute(query)]

    def _open_lease(self, connection: Connection, rater: Rater) -> Row[Any] | None:
        query = select(LEASES).outerjoin(RATINGS).where(LEASES.c.rater == rater.rater, RATINGS.c.lease.is_(None))
        return connection.execute(query).first()

    def _new_lease(self, connection: Connection, rater: Rater, now: float) -> Lease | None:
        chosen = choose_next(self._study, rater.rater, list(self._shown(connection, rater, now)), self._per_kind)
        if chosen is None:
            return None
        lease = Lease(secrets.token_urlsafe(16), chosen.question, chosen.left_image, chosen.right_image)
        facts = {
            "study": self._study.hash,
            "rater": rater.rater,
            "leased_at": now,
            "expires_at": now + self._lease_seconds,
        }
        connection.execute(LEASES.insert().values(**lease.__dict__, **facts))
        return lease

    def _shown(self, connection: Connection, rater: Rater, now: float) -> Iterator[Shown]:
        """What has been answered or is being looked at, by raters of the same kind: programs take nothing from people."""
        query = (
            select(LEASES.c.question, LEASES.c.rater, LEASES.c.left_image)
            .select_from(LEASES.join(RATERS).outerjoin(RATINGS))
            .where(LEASES.c.study == self._study.hash, RATERS.c.simulated == rater.simulated)
            .where(RATINGS.c.lease.is_not(None) | (LEASES.c.expires_at > now))
        )
        for row in connection.execute(query):
            yield Shown(row.question, row.rater, row.left_image)
