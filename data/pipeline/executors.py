"""Where parts run: in this process, or on Dask workers. The functions they run know nothing of either."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data.pipeline.errors import Code, StageFailed, UserError
from data.pipeline.settings import ClusterSettings

T = TypeVar("T")


MAX_DEATHS = 3  # of workers over one call, before it is given up


class WorkerDied(RuntimeError):
    """The process that ran a task disappeared."""


class Executor(Protocol):
    def run(
        self, name: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], labels: Sequence[T]
    ) -> Iterator[tuple[T, Any]]:
        """Call `function(*args)` for each entry of `calls`; yield (label, result or exception) in order of completion."""
        ...


def gather(executor: Executor, name: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Results of `function(*args)` for each entry of `calls`, in their order: what a whole-artifact step is reduced from.

    A call whose worker dies is made again, by itself. Raises StageFailed after the third death, and what a call raised."""
    found: dict[int, Any] = {}
    for attempt in range(MAX_DEATHS):
        missing = [i for i in range(len(calls)) if i not in found]
        for batch in [missing] if attempt == 0 else [[i] for i in missing]:
            for label, outcome in executor.run(name, function, [calls[i] for i in batch], batch):
                if isinstance(outcome, WorkerDied):
                    continue
                if isinstance(outcome, BaseException):
                    raise outcome
                found[label] = outcome
        if len(found) == len(calls):
            return [found[i] for i in range(len(calls))]
    raise StageFailed(
        f"{name}: the workers of {len(calls) - len(found)} calls died {MAX_DEATHS} times (out of memory, or killed)"
    )


class InProcess:
    """One call after another, here. For cheap stages, tests and debugging."""

    def run(
        self, name: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], labels: Sequence[T]
    ) -> Iterator[tuple[T, Any]]:
        for label, args in zip(labels, calls, strict=True):
            try:
                outcome = function(*args)
            except Exception as error:
                outcome = error
            yield label, outcome


class OnDask:
    """A Dask client. At most one call a thread is in flight, so that a dying worker takes only the part it was making with it.

    With `resource`, calls go to the workers that offer it, each taking one of it; where no worker does, to all.
    """

    def __init__(self, client: Any, resource: str | None = None) -> None:
        self.client, self.resource = client, resource

    def run(
        self, name: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], labels: Sequence[T]
    ) -> Iterator[tuple[T, Any]]:
        """Raises StageFailed when the scheduler is gone."""
        from concurrent.futures import CancelledError

        try:
            yield from self._run(function, list(zip(labels, calls, strict=True))[::-1])
        except (CancelledError, OSError) as error:
            # Outcomes are handed on, not raised: what arrives here concerns the connection alone.
            address = getattr(self.client.scheduler, "address", "?")
            raise StageFailed(
                f"{name}: the Dask scheduler at {address} is gone; what is complete is kept: "
                "start it and its workers again (or set cluster.workers) and run the same command again",
                Code.SCHEDULER,
            ) from error

    def _run(self, function: Callable[..., Any], todo: list[tuple[T, tuple[Any, ...]]]) -> Iterator[tuple[T, Any]]:
        from distributed import as_completed

        running: dict[Any, T] = {}
        completed = as_completed(with_results=False)

        def submit() -> None:
            label, args = todo.pop()
            needs = {self.resource: 1} if self._offered() else None
            future = self.client.submit(function, *args, pure=False, retries=0, resources=needs)
            running[future] = label
            completed.add(future)

        def fill() -> None:
            # Read anew each time: workers of a running scheduler come and go.
            while todo and len(running) < max(1, self._offered() or sum(self.client.nthreads().values())):
                submit()

        fill()
        for future in completed:
            label = running.pop(future)
            yield label, self._outcome(future)
            future.release()
            fill()

    def _offered(self) -> int:
        """How many calls the workers' resource admits at a time; 0 where no worker offers it."""
        if self.resource is None:
            return 0
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        return int(sum(worker["resources"].get(self.resource, 0) for worker in workers))

    def _outcome(self, future: Any) -> Any:
        from distributed import KilledWorker

        error = future.exception()
        if error is None:
            return future.result()
        return WorkerDied(str(error)) if isinstance(error, KilledWorker) else error


def _worker_log(folder: Path) -> Any:
    """A plugin that sends a worker process's stderr (libtiff's complaints about a file, native crashes) to `logs/workers.log`,
    also after a restart."""
    from distributed import WorkerPlugin

    class WorkerLog(WorkerPlugin):
        name = "worker-log"

        def __init__(self, path: str) -> None:
            self.path = path

        def setup(self, worker: Any) -> None:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, sys.stderr.fileno())
            os.close(descriptor)

    folder.mkdir(parents=True, exist_ok=True)
    return WorkerLog(str((folder / "workers.log").resolve()))


@contextmanager
def open_executor(
    settings: ClusterSettings, scratch: Path, resource: str | None = None, holders: int = 0,
    at_least: int = 1, bounded: bool = True,
) -> Iterator[Executor]:  # fmt: skip
    """An executor for the settings: in this process (`workers = 0`), a local cluster of single-threaded worker processes, or a
    running scheduler. Workers' scratch lies in `scratch`.

    `resource` ("GPU") is a Dask resource: a local cluster then has `holders` workers that offer one each (0: `workers` that offer
    none); of a running scheduler those workers are used that were started with `--resources "GPU=1"`, where there are any.
    A local cluster takes seconds to start: it is started by the first round of `at_least` calls, smaller ones run in this process.
    `bounded` workers are restarted beyond `memory_limit`; trainings are not bounded.
    """
    if settings.address is not None:
        with _remote(settings.address) as client:
            yield OnDask(client, resource)
    elif settings.workers == 0:
        yield InProcess()
    else:
        with ExitStack() as stack:
            limit = settings.memory_limit if bounded else 0
            yield WhenWorthIt(
                lambda: stack.enter_context(_local(settings.workers, limit, scratch, resource, holders)), at_least
            )


@dataclass
class WhenWorthIt:
    """A local cluster that is started by the first round of at least `at_least` calls; what is smaller runs in this process."""

    start: Callable[[], Executor]
    at_least: int
    started: Executor | None = None

    def run(
        self, name: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], labels: Sequence[T]
    ) -> Iterator[tuple[T, Any]]:
        if self.started is None and len(calls) >= self.at_least:
            self.started = self.start()
        yield from (self.started or InProcess()).run(name, function, calls, labels)


@contextmanager
def _local(
    workers: int, memory_limit: str | int, scratch: Path, resource: str | None, holders: int
) -> Iterator[Executor]:
    import dask
    from distributed import Client, LocalCluster

    # A worker's death is ours to judge (see runner.MAX_DEATHS), so the scheduler reports the first one.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.worker.daemon": True}):
        scratch.mkdir(parents=True, exist_ok=True)
        cluster = LocalCluster(
            n_workers=holders or workers, threads_per_worker=1, processes=True, memory_limit=memory_limit,
            dashboard_address="127.0.0.1:0", local_directory=str(scratch), silence_logs=40,
            resources={resource: 1} if resource and holders else None,
        )  # fmt: skip
        # A worker's death is said by the runner, with the part's name.
        logging.getLogger("distributed.scheduler").setLevel(logging.CRITICAL)
        with cluster, Client(cluster) as client:
            client.register_plugin(_worker_log(scratch.parent / "logs"))
            yield OnDask(client, resource)


@contextmanager
def _remote(address: str) -> Iterator[Any]:
    """A client of a running scheduler that has a worker."""
    import dask
    from distributed import Client

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        try:
            client = Client(address, timeout="10s")
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(
                f"cluster.address: no Dask scheduler answers at {address}: {error}", Code.SCHEDULER
            ) from None
        # A lost connection is reported by OnDask in one line; the client would add a traceback of its own.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        with client:
            try:
                client.wait_for_workers(1, timeout=60)
            except TimeoutError:
                raise UserError(
                    f"cluster.address: the scheduler at {address} has no worker after 60 s", Code.SCHEDULER
                ) from None
            yield client
