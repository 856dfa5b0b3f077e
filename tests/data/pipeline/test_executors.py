"""Which Dask workers a call goes to, and how many at a time."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from data.pipeline.errors import StageFailed
from data.pipeline.executors import InProcess, OnDask, WhenWorthIt, WorkerDied, gather, open_executor
from data.pipeline.settings import ClusterSettings

pytestmark = pytest.mark.timeout(120)


def who_and_when(_: int) -> tuple[int, float, float]:
    start = time.time()
    time.sleep(0.2)
    return os.getpid(), start, time.time()


def test_a_resource_has_one_worker_each_and_one_call_at_a_time(tmp_path: Path) -> None:
    """As the embedding stage asks on a machine with two GPUs; here the workers only say that they have one."""
    with open_executor(ClusterSettings(workers=1), tmp_path / "scratch", "GPU", holders=2) as executor:
        assert isinstance(executor, WhenWorthIt)
        executor = executor.started = executor.start()
        assert isinstance(executor, OnDask)
        executor.client.wait_for_workers(2, timeout=60)
        offered = [worker["resources"] for worker in executor.client.scheduler_info()["workers"].values()]
        assert offered == [{"GPU": 1}, {"GPU": 1}]
        outcomes = [outcome for _, outcome in executor.run("x", who_and_when, [(i,) for i in range(6)], list(range(6)))]
    assert len({pid for pid, _, _ in outcomes}) == 2
    for pid, start, end in outcomes:
        assert not any(other == pid and start < begun < end for other, begun, _ in outcomes), "two calls on one GPU"


def test_of_a_mixed_cluster_only_the_workers_with_the_resource_are_used(tmp_path: Path) -> None:
    from distributed import Client, Nanny, Scheduler, SpecCluster

    folder = str(tmp_path)
    workers = {
        name: {"cls": Nanny, "options": {"nthreads": 1, "resources": offers, "local_directory": folder}}
        for name, offers in (("with", {"GPU": 1}), ("without", {}))
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}}
    with SpecCluster(workers, scheduler, silence_logs=40) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        calls = [(i,) for i in range(4)]
        for resource, pids in (("GPU", 1), (None, 2), ("TPU", 2)):
            outcomes = dict(OnDask(client, resource).run("x", who_and_when, calls, calls))
            assert len({pid for pid, _, _ in outcomes.values()}) == pids, resource


class Dying(InProcess):
    """The worker of call 1 dies `times` times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def run(self, name: str, function: Any, calls: Any, labels: Any) -> Any:
        for label, outcome in super().run(name, function, calls, labels):
            if label == 1 and self.times:
                self.times -= 1
                yield label, WorkerDied("gone")
            else:
                yield label, outcome


def test_what_is_gathered_is_in_order_and_a_dead_worker_is_tried_again() -> None:
    assert gather(Dying(2), "squares", pow, [(i, 2) for i in range(4)]) == [0, 1, 4, 9]
    with pytest.raises(StageFailed, match="squares: the workers of 1 calls died 3 times"):
        gather(Dying(3), "squares", pow, [(i, 2) for i in range(4)])
    with pytest.raises(ZeroDivisionError):
        gather(InProcess(), "x", divmod, [(1, 0)])
