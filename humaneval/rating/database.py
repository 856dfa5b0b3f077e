"""The database behind a study: tables, and transactions that no other writer interleaves with.

SQLite in WAL mode by default; PostgreSQL by its SQLAlchemy URL through the same statements. No personal data: a rater is a
random token. All times are Unix seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from data.pipeline.errors import UserError
from data.pipeline.run import Run
from humaneval.settings import HumanevalSettings

SQLITE = "sqlite:///"
BUSY_TIMEOUT_MS = 30_000
# What makes a transaction the only writer from its first statement.
LOCK = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(220406125)"}
METADATA = MetaData()

RATERS = Table(
    "raters", METADATA,
    Column("rater", String, primary_key=True),  # random token; "simulated-..." for programs
    Column("study", String, nullable=False),  # the study's hash
    Column("simulated", Boolean, nullable=False),
    Column("consent_version", String, nullable=False),
    Column("joined_at", Float, nullable=False),
)  # fmt: skip
LEASES = Table(
    "leases", METADATA,
    Column("lease", String, primary_key=True),
    Column("study", String, nullable=False),
    Column("question", String, nullable=False),
    Column("rater", ForeignKey("raters.rater"), nullable=False),
    Column("left_image", String, nullable=False),
    Column("right_image", String, nullable=False),
    Column("leased_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    UniqueConstraint("study", "question", "rater"),
)  # fmt: skip
RATINGS = Table(
    "ratings", METADATA,
    Column("lease", ForeignKey("leases.lease"), primary_key=True),
    Column("answer", String, nullable=False),  # left, right, not_sure
    Column("rated_at", Float, nullable=False),
    Column("response_seconds", Float, nullable=False),  # by the server's clock, from the lease to the answer
)  # fmt: skip


def database_url(run: Run, settings: HumanevalSettings) -> str:
    """SQLAlchemy URL of the run's ratings."""
    return settings.database or f"sqlite:///{(run.folder / 'humaneval' / 'ratings.sqlite').resolve()}"


def people_have_rated(url: str, study: str) -> bool:
    """Whether the database holds an answer by a person to the study with this hash. A missing SQLite file is not created."""
    if url.startswith(SQLITE) and not Path(url.removeprefix(SQLITE)).exists():
        return False
    query = select(RATINGS.c.lease).select_from(RATINGS.join(LEASES).join(RATERS))
    query = query.where(RATERS.c.simulated.is_(False), LEASES.c.study == study).limit(1)
    with open_database(url).connect() as connection:
        return connection.execute(query).first() is not None


def open_database(url: str) -> Engine:
    """An engine with our tables. Raises UserError when the URL leads nowhere."""
    try:
        if url.startswith(SQLITE):
            Path(url.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url)
        if engine.dialect.name not in LOCK:
            raise UserError(f"humaneval.database: {engine.dialect.name} is not supported; use {' or '.join(LOCK)}")
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _configure_sqlite)
        with writing(engine) as connection:
            METADATA.create_all(connection)
        return engine
    except (SQLAlchemyError, ImportError, OSError) as error:
        shown = url.split("@")[-1]  # without a password
        raise UserError(f"humaneval.database: cannot open {shown}: {str(error).splitlines()[0]}") from None


def _configure_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin in `writing`; a lone SELECT needs none
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that no other writer interleaves with."""
    with engine.begin() as connection:
        connection.exec_driver_sql(LOCK[connection.dialect.name])
        yield connection


def insert_new(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Insert unless the primary key is taken. Returns whether the row is new."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return connection.execute(insert(table).values(**row).on_conflict_do_nothing()).rowcount == 1
