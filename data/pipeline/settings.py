"""What a config may say about the run and the cluster."""

from typing import ClassVar

from pydantic import Field

from data.pipeline.config import Section


class RunSettings(Section):
    """`folder/name` is the run folder; `seed` is the one number from which every stage derives its randomness."""

    section: ClassVar[str] = "run"
    volatile: ClassVar[tuple[str, ...]] = ("name", "folder")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    folder: str = "runs"
    seed: int = Field(default=0, ge=0)


class ClusterSettings(Section):
    """Where parts are made: `workers` local single-threaded processes (0: in this process), or a running Dask scheduler."""

    section: ClassVar[str] = "cluster"
    volatile: ClassVar[tuple[str, ...]] = ("workers", "address", "memory_limit")
    workers: int = Field(default=2, ge=0)
    address: str | None = None
    memory_limit: str = "4GiB"
