"""Hosts that only fail do not hold up a shard; hosts that mostly answer are never given up."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from data.fetch import failing
from data.fetch.failing import CREDIT, FailingHosts
from data.fetch.fetched import Fetched
from data.fetch.http import HttpFetcher
from data.fetch.limits import HostLimits
from data.fetch.reasons import Reason
from data.fetch.settings import FetchSettings
from tests.data.raw_server import raw_server, reply

pytestmark = pytest.mark.timeout(30)
FAILED = Fetched(reason=Reason.TIMEOUT, detail="why")


def fetcher(path: Path | None = None, **settings: Any) -> HttpFetcher:
    options = {"attempts": 1, "deadline": 0.2, "allow_private_hosts": True, "host_failures": 3} | settings
    return HttpFetcher(FetchSettings(**options), limits=HostLimits(path, options.get("per_host", 8)) if path else None)


def stall(connection: socket.socket) -> None:
    connection.recv(1)


def test_a_host_that_stalls_is_given_up_and_others_are_not() -> None:
    with raw_server({"/stalls": stall, "/ok": reply()}) as server:
        get = fetcher()
        found = [get(server.url("/stalls")) for _ in range(50)]
        assert {one.reason for one in found} == {Reason.TIMEOUT}
        assert [one.attempts for one in found] == [1] * 3 + [0] * 47
        assert len(server.paths()) == 3 and "left alone" in found[-1].detail
        assert get(f"http://localhost:{server.port}/ok").content is not None


def test_what_waits_for_a_place_is_answered_too(tmp_path: Path) -> None:
    with raw_server({"/stalls": stall}) as server, ThreadPoolExecutor(16) as pool:
        start = time.monotonic()
        found = list(pool.map(fetcher(tmp_path / "hosts", per_host=2), [server.url("/stalls")] * 60))
        assert time.monotonic() - start < 2  # 60 / 2 x 0.2 s otherwise
        assert {one.reason for one in found} == {Reason.TIMEOUT} and 3 <= len(server.paths()) <= 4


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(b"", "429 Slow"), Reason.HTTP_429),
        (reply(b"", "503 Slow", Retry_After=1), Reason.HTTP_5XX),
        (lambda connection: None, Reason.CONNECTION),
    ],
)
def test_a_host_that_asks_to_wait_or_hangs_up_is_given_up(answer: Any, reason: Reason) -> None:
    with raw_server({"/x": answer}) as server:
        get = fetcher()
        assert [get(server.url("/x")).reason for _ in range(9)] == [reason] * 9
        assert len(server.paths()) == 3


@pytest.mark.parametrize("status", ["404 No", "500 No", "200 OK"])
def test_a_host_that_answers_is_never_given_up(status: str) -> None:
    answers = [reply(b"", "429 Slow"), reply(b"", "429 Slow"), reply(b"", status)]
    with raw_server({"/x": answers * 9}) as server:
        get = fetcher()
        for _ in range(27):
            get(server.url("/x"))
        assert len(server.paths()) == 27


def test_a_host_is_asked_again_later_and_one_answer_is_enough() -> None:
    with raw_server({"/x": [reply(b"", "429 Slow")] * 4 + [reply()]}) as server:
        get = fetcher()
        for _ in range(5):
            get(server.url("/x"))
        assert len(server.paths()) == 3
        get._failing._hosts["127.0.0.1"].until = 0.0  # a minute later
        assert [get(server.url("/x")).attempts for _ in range(3)] == [1, 0, 0]  # one failure more is enough
        get._failing._hosts["127.0.0.1"].until = 0.0
        assert all(get(server.url("/x")).content is not None for _ in range(3))


def test_it_can_be_switched_off() -> None:
    with raw_server({"/x": reply(b"", "429 Slow")}) as server:
        get = fetcher(host_failures=0)
        for _ in range(30):
            get(server.url("/x"))
        assert len(server.paths()) == 30


def test_the_trusted_server_is_never_given_up() -> None:
    with raw_server({"/x": reply(b"", "429 Slow")}) as server:
        get = HttpFetcher(FetchSettings(attempts=1, host_failures=1), trusted=server.authority)
        for _ in range(9):
            get(server.url("/x"))
        assert len(server.paths()) == 9


def test_earlier_answers_are_used_up_first() -> None:
    for answers, needed in ((0, 3), (1, 4), (20, 23), (10**4, 3 * CREDIT + 3)):
        hosts = FailingHosts(3)
        for _ in range(answers):
            hosts.note("h", None)
        for count in range(needed):
            assert hosts.answer("h") is None, (answers, count)
            hosts.note("h", FAILED)
        given_up = hosts.answer("h")
        assert given_up is not None and given_up.reason == Reason.TIMEOUT and hosts.answer("other") is None


def test_a_host_with_as_many_failures_as_answers_is_never_given_up() -> None:
    hosts = FailingHosts(3)
    for _ in range(1000):
        for failure in (FAILED, FAILED, None):
            hosts.note("h", failure)
            assert hosts.answer("h") is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing, "MOST_HOSTS", 10)
    hosts = FailingHosts(1)
    for number in range(100):
        hosts.note(f"h{number}", FAILED)
    assert len(hosts._hosts) == 10 and hosts.answer("h99") is not None and hosts.answer("h0") is None
