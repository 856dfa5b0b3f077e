"""One limit per host over all workers, and hosts that ask to be left alone."""

import email.utils
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.fetch import limits as limits_module
from data.fetch.http import HttpFetcher
from data.fetch.limits import SLOT, SLOTS, HostHeld, HostLimits
from data.fetch.reasons import Reason
from data.fetch.response import seconds_of
from data.fetch.settings import FetchSettings
from tests.conftest import REPOSITORY
from tests.data.raw_server import raw_server, reply

pytestmark = pytest.mark.timeout(30)

# A worker process: `threads` threads that fetch `url` `count` times in all, and then say how often that went well.
WORKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from data.fetch.http import HttpFetcher
from data.fetch.limits import HostLimits
from data.fetch.settings import FetchSettings
path, url, threads, count, concurrency, rate = sys.argv[1:]
limits = HostLimits(Path(path), int(concurrency), float(rate) or None)
fetch = HttpFetcher(FetchSettings(allow_private_hosts=True, attempts=1, deadline=1.0), limits=limits)
with ThreadPoolExecutor(int(threads)) as pool:
    print(sum(found.content is not None for found in pool.map(fetch, [url] * int(count))))
"""


class Counting:
    """Answers after `seconds`; knows how many requests were there at once, and when each came."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.peak = seconds, 0, 0
        self.times: list[float] = []
        self.lock = threading.Lock()

    def __call__(self, connection: socket.socket) -> None:
        with self.lock:
            self.now += 1
            self.peak = max(self.peak, self.now)
            self.times.append(time.monotonic())
        time.sleep(self.seconds)
        with self.lock:  # before the answer: the client may start its next request as soon as it has it
            self.now -= 1
        connection.sendall(reply(Connection="close"))


def start(path: Path, url: str, threads: int, count: int, concurrency: int, rate: float = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORKER, str(path), url, str(threads), str(count), str(concurrency), str(rate)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "hosts"


def test_two_workers_share_one_limit_on_requests_at_a_time(path: Path) -> None:
    counting = Counting(0.03)
    with raw_server({"/x": counting}) as server:
        workers = [start(path, server.url("/x"), 12, 60, concurrency=5) for _ in range(2)]
        assert [worker.communicate()[0].strip() for worker in workers] == ["60", "60"]
    assert counting.peak == 5  # not more, and not fewer
    span = max(counting.times) - min(counting.times)
    assert span < 3 * 120 * 0.03 / 5  # places do not lie idle


def test_two_workers_share_one_rate(path: Path) -> None:
    counting, rate = Counting(0.0), 50.0
    with raw_server({"/x": counting}) as server:
        workers = [start(path, server.url("/x"), 12, 40, 8, rate) for _ in range(2)]
        assert [worker.communicate()[0].strip() for worker in workers] == ["40", "40"]
    times = sorted(counting.times)
    assert len(times) == 80
    for i in range(len(times) - 20):
        assert (
            times[i + 20] - times[i] > 19 / rate - 0.15
        )  # twenty in a row never come faster, but for the machine's jitter
    assert 79 / rate * 0.9 < times[-1] - times[0] < 79 / rate * 2  # and the rate is reached


def test_a_killed_worker_gives_its_places_back(path: Path) -> None:
    counting = Counting(30)
    with raw_server({"/x": counting, "/y": reply()}) as server:
        worker = start(path, server.url("/x"), 4, 4, concurrency=4)
        while counting.now < 4:
            time.sleep(0.01)
        limits = HostLimits(path, 4)
        got = threading.Event()

        def ask() -> None:
            with limits.place("127.0.0.1", 0):
                got.set()

        asking = threading.Thread(target=ask)
        asking.start()
        assert not got.wait(0.3)  # all four are taken
        os.kill(worker.pid, signal.SIGKILL)
        worker.communicate()
        assert got.wait(2)
        asking.join()


def test_two_openings_in_one_process_exclude_each_other(path: Path) -> None:
    first, second = HostLimits(path, 1), HostLimits(path, 1)
    entered: list[float] = []
    with first.place("h", 0):
        with first.place("another", 0):
            pass
        thread = threading.Thread(target=_enter, args=(second, "h", entered))
        thread.start()
        time.sleep(0.1)
        left = time.monotonic()
    thread.join()
    assert entered[0] >= left


def _enter(limits: HostLimits, host: str, entered: list[float]) -> None:
    with limits.place(host, 0):
        entered.append(time.monotonic())


def test_a_forked_child_has_no_share_in_its_parents_places(path: Path) -> None:
    limits = HostLimits(path, 1)
    with limits.place("h", 0):
        child = os.fork()
        if child == 0:
            entered: list[float] = []
            thread = threading.Thread(target=_enter, args=(limits, "h", entered), daemon=True)
            thread.start()
            thread.join(0.2)
            os._exit(len(entered))
        assert os.waitpid(child, 0)[1] == 0


def test_waiting_costs_next_to_nothing(path: Path) -> None:
    limits, other = HostLimits(path, 2), HostLimits(path, 2)
    with limits.place("h", 0), limits.place("h", 0):
        entered: list[float] = []
        threads = [
            threading.Thread(target=_enter, args=(each, "h", entered)) for each in (limits, other) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        before = time.process_time()
        time.sleep(0.7)
        assert time.process_time() - before < 0.12
        assert not entered
    for thread in threads:
        thread.join()
    assert len(entered) == 16


def test_a_worker_that_came_later_is_not_starved(path: Path) -> None:
    served = [0, 0]
    end = time.monotonic() + 1.5

    def work(which: int, limits: HostLimits) -> None:
        time.sleep(0.1 * which)
        while time.monotonic() < end:
            with limits.place("h", 0):
                time.sleep(0.005)
                served[which] += 1

    threads = [
        threading.Thread(target=work, args=(i, limits))
        for i in (0, 1)
        for limits in [HostLimits(path, 2)]
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(served) > 0.15 * sum(served), served
    assert sum(served) > 150, served  # of 600 that fit in


def test_a_place_is_given_back_when_the_fetch_raises(path: Path) -> None:
    limits = HostLimits(path, 1)
    for _ in range(3):
        with pytest.raises(KeyError), limits.place("h", 0):
            raise KeyError
    assert limits._file()._places == {}


def test_a_hold_is_seen_by_everyone_and_ends(path: Path) -> None:
    first, second = HostLimits(path, 2), HostLimits(path, 2, rate=100.0)
    first.hold("h", 0.3)
    first.hold("h", 0.1)  # a shorter one does not shorten it
    with pytest.raises(HostHeld, match="h asked to be left alone"), second.place("h", 0.1):
        pass
    with second.place("free", 0.0):
        pass
    start_of_wait = time.monotonic()
    with second.place("h", 5.0) as held:
        assert 0.2 < time.monotonic() - start_of_wait < 1.0 and 0.2 < held < 0.4


def test_times_of_another_clock_or_of_garbage_do_not_stall(path: Path) -> None:
    path.parent.mkdir(parents=True)
    far = time.time() + 1e7
    for garbage in (
        SLOT.pack(far, far),
        SLOT.pack(float("nan"), float("nan")),
        b"\xff" * 16,
        SLOT.pack(float("inf"), -1.0),
    ):
        path.write_bytes(garbage * SLOTS)
        before = time.monotonic()
        with HostLimits(path, 1, rate=10.0).place("h", 0.0):
            assert time.monotonic() - before < 0.5


def test_the_file_is_sparse_and_keeps_its_size(path: Path) -> None:
    openings = [HostLimits(path, 8, rate=1e9) for _ in range(4)]
    for number, limits in enumerate(openings):
        with limits.place(f"h{number}", 0):
            pass
    assert path.stat().st_size == SLOTS * struct.calcsize("<dd")
    assert path.stat().st_blocks * 512 < path.stat().st_size / 4


@pytest.mark.parametrize(("concurrency", "rate"), [(0, None), (257, None), (1, 0.0)])
def test_limits_that_are_none(path: Path, concurrency: int, rate: float | None) -> None:
    with pytest.raises(ValueError, match="got 0|got 257"):
        HostLimits(path, concurrency, rate)


def test_posix_locks_where_there_are_no_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other half of the module, run under this kernel; between processes only, as its docstring says."""
    import fcntl
    import importlib.util

    monkeypatch.delattr(fcntl, "F_OFD_SETLK")
    spec = importlib.util.spec_from_file_location("posix_limits", limits_module.__file__)
    assert spec is not None and spec.loader is not None
    posix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(posix)
    limits = posix.HostLimits(path, 1, rate=100.0)
    with limits.place("h", 0):
        child = os.fork()
        if child == 0:
            entered: list[float] = []
            thread = threading.Thread(target=_enter, args=(limits, "h", entered), daemon=True)
            thread.start()
            thread.join(0.2)
            os._exit(len(entered))
        assert os.waitpid(child, 0)[1] == 0


# Retry-After


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("7", 7), (" 120 ", 120), ("9" * 400, 86_400), ("-5", 0), ("soon", 0), ("", 0), ("1.5", 0), ("²", 0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400)],
)  # fmt: skip
def test_retry_after_in_seconds_or_as_a_date(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_retry_after_as_a_date_ahead() -> None:
    assert 50 < seconds_of(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60


def fetcher(path: Path | None, **settings: Any) -> HttpFetcher:
    options = {"attempts": 2, "deadline": 0.5, "allow_private_hosts": True} | settings
    return HttpFetcher(FetchSettings(**options), limits=HostLimits(path, 4) if path else None)


@pytest.fixture
def busy() -> Iterator[Any]:
    later = lambda status, wait: [reply(b"", status, Retry_After=wait), reply()]  # noqa: E731
    soon = email.utils.formatdate(time.time() + 2, usegmt=True)
    answers = {"/429": later("429 Slow", 1), "/date": later("503 No", soon), "/ok": reply()}
    with raw_server(answers | {"/never": reply(b"", "429 Slow", Retry_After=3600)}) as server:
        yield server


@pytest.mark.parametrize("path_of", ["/429", "/date"])
def test_what_a_host_asks_for_is_waited_and_not_charged_to_the_deadline(path: Path, busy: Any, path_of: str) -> None:
    found = fetcher(path)(busy.url(path_of))
    assert found.content is not None and found.attempts == 2
    assert busy.times[1] - busy.times[0] > (0.95 if path_of != "/date" else 0.3)


def test_without_a_file_of_limits_the_row_itself_waits(busy: Any) -> None:
    assert fetcher(None)(busy.url("/429")).content is not None
    assert busy.times[1] - busy.times[0] > 0.95


def test_the_wait_holds_for_the_host_over_all_workers(path: Path, busy: Any) -> None:
    assert fetcher(path, attempts=1)(busy.url("/429")).reason == Reason.HTTP_429
    assert fetcher(path)(busy.url("/ok")).content is not None
    assert busy.times[1] - busy.times[0] > 0.95


def test_too_long_a_wait_is_given_up_at_once(path: Path, busy: Any) -> None:
    before = time.monotonic()
    found = fetcher(path)(busy.url("/never"))
    assert (found.reason, found.http_status, found.attempts) == (Reason.HTTP_429, 429, 1)
    found = fetcher(path)(busy.url("/ok"))  # nor is the host asked for anything else
    assert (found.reason, found.http_status) == (Reason.HTTP_429, None) and "left alone" in found.detail
    assert time.monotonic() - before < 0.5 and busy.paths() == ["/never"]
    assert fetcher(path)(f"http://localhost:{busy.port}/ok").content is not None  # another host


def test_the_trusted_server_is_not_limited(path: Path, busy: Any) -> None:
    limits = HostLimits(path, 1, rate=0.01)
    get = HttpFetcher(FetchSettings(attempts=1), trusted=busy.authority, limits=limits)
    for _ in range(3):
        assert get(busy.url("/ok")).content is not None
    assert get(busy.url("/never")).reason == Reason.HTTP_429
    assert get(busy.url("/ok")).content is not None
    assert not path.exists()


def test_waiting_for_a_place_is_not_charged_to_the_deadline(path: Path, busy: Any) -> None:
    get = HttpFetcher(FetchSettings(allow_private_hosts=True, deadline=0.3), limits=HostLimits(path, 1))
    with HostLimits(path, 1).place("127.0.0.1", 0):
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(get(busy.url("/ok"))))
        thread.start()
        time.sleep(0.6)
    thread.join()
    assert found[0].content is not None
