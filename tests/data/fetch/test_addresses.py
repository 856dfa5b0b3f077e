"""Names and addresses: private ones are never connected to, names are asked for once, and all of it within the deadline."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from data.fetch import connections, dns
from data.fetch.http import Fetched, HttpFetcher
from data.fetch.reasons import Reason
from data.fetch.settings import FetchSettings
from tests.data.raw_server import raw_server, reply

pytestmark = pytest.mark.timeout(30)
DEADLINE = 0.3


def fetcher(**settings: Any) -> HttpFetcher:
    limits = {"deadline": DEADLINE, "max_bytes": 1_000_000, "attempts": 2, "allow_private_hosts": True} | settings
    return HttpFetcher(FetchSettings(**limits))


def timed(get: Callable[[], Fetched]) -> tuple[Fetched, float]:
    start = time.monotonic()
    return get(), time.monotonic() - start


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A resolver whose answers the test writes: addresses, an error, or seconds to take."""
    answers: dict[str, Any] = {"asked": []}
    fresh = dns.Resolver()

    def getaddrinfo(host: bytes, port: int, **_: object) -> list[Any]:
        answers["asked"].append(host.decode())
        answer = answers.get(host.decode(), socket.gaierror(socket.EAI_NONAME, "no such name"))
        if isinstance(answer, float):
            time.sleep(answer)
            answer = ["127.0.0.1"]
        if isinstance(answer, Exception):
            raise answer
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, port, 0, 0) if ":" in a else (a, port))
            for a in answer
        ]

    monkeypatch.setattr(dns, "RESOLVER", fresh)
    monkeypatch.setattr("data.fetch.dns.socket.getaddrinfo", getaddrinfo)
    return answers


def test_a_name_server_that_does_not_answer_meets_the_deadline(names: dict[str, Any]) -> None:
    names["slow.example"] = 1.5
    found, seconds = timed(lambda: fetcher()("http://slow.example/"))
    assert found.reason == Reason.DNS and "name server" in found.detail
    assert seconds < DEADLINE + 0.5


def test_a_name_is_asked_for_once(names: dict[str, Any]) -> None:
    names["slow.example"] = 0.2
    with raw_server({"/x": reply()}) as server:
        get = fetcher(deadline=3)
        found: list[bytes | None] = []
        threads = [
            threading.Thread(target=lambda: found.append(get(f"http://slow.example:{server.port}/x").content))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [b"image bytes"] * 8
    assert names["asked"] == ["slow.example"]


def test_an_unknown_name_is_remembered_and_a_passing_failure_is_not(names: dict[str, Any]) -> None:
    get = fetcher(attempts=1)
    names["busy.example"] = socket.gaierror(socket.EAI_AGAIN, "try again")
    for host in ("none.example", "busy.example") * 2:
        assert get(f"http://{host}/").reason == Reason.DNS
    assert names["asked"] == ["none.example", "busy.example", "busy.example"]
    with raw_server({"/x": reply()}) as server:
        names["busy.example"] = ["127.0.0.1"]
        assert get(f"http://busy.example:{server.port}/x").content == b"image bytes"


def test_an_unknown_name_costs_one_attempt(names: dict[str, Any]) -> None:
    found, seconds = timed(lambda: fetcher(attempts=3, deadline=5)("http://none.example/"))
    assert (found.reason, found.attempts) == (Reason.DNS, 1) and seconds < 0.2


def test_many_names_are_looked_up_side_by_side(names: dict[str, Any]) -> None:
    hosts = [f"h{n}.example" for n in range(40)]
    names.update(dict.fromkeys(hosts, 0.1))
    resolver = dns.RESOLVER
    threads = [threading.Thread(target=resolver.addresses, args=(host, 5.0)) for host in hosts]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 1.5
    assert resolver._threads <= dns.THREADS and not resolver._asked


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.1", "::1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["0.0.0.0"]],
)  # fmt: skip
def test_a_name_with_private_addresses_is_never_connected_to(
    names: dict[str, Any], addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["evil.example"] = addresses
    monkeypatch.setattr(connections, "_connect", lambda *_: pytest.fail("connected"))
    found = fetcher(allow_private_hosts=False)("http://evil.example/x")
    assert found.reason == Reason.HOST_REFUSED and "evil.example" in found.detail


def test_of_mixed_addresses_only_the_public_ones_are_tried(
    names: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def connect(_: object, addresses: list[Any], __: float) -> None:
        tried.extend(address[1][0] for address in addresses)
        raise ConnectionRefusedError("refused")

    names["mixed.example"] = ["127.0.0.1", "8.8.8.8", "2001:4860:4860::8888", "::1"]
    monkeypatch.setattr(connections, "_connect", connect)
    assert fetcher(allow_private_hosts=False, attempts=1)("http://mixed.example/x").reason == Reason.CONNECTION
    assert tried == ["8.8.8.8", "2001:4860:4860::8888"]


def test_the_peer_is_looked_at_again(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands between the judged address and the wire."""
    names["rebound.example"] = ["8.8.8.8"]
    with raw_server({"/x": reply()}) as server:

        def connect(*_: object) -> socket.socket:
            elsewhere = connections._Timed(socket.AF_INET, socket.SOCK_STREAM)
            elsewhere.connect(("127.0.0.1", server.port))
            return elsewhere

        monkeypatch.setattr(connections, "_connect", connect)
        assert fetcher(allow_private_hosts=False)("http://rebound.example/x").reason == Reason.HOST_REFUSED
        assert not server.heads


def test_dead_addresses_take_their_share_of_the_time_only(names: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.2", 0), backlog=0) as full, raw_server({"/x": reply()}) as server:
        port = full.getsockname()[1]
        queued = []
        for _ in range(3):  # a full backlog does not answer any more
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.2", port))
            queued.append(waiting)
        names["dead.example"] = ["127.0.0.2"]
        found, seconds = timed(lambda: fetcher(attempts=1)(f"http://dead.example:{port}/x"))
        assert found.reason == Reason.TIMEOUT and seconds < DEADLINE + 0.5
        names["half.example"] = ["127.0.0.2", "127.0.0.1"]
        with socket.create_server(("127.0.0.1", port)) as alive:
            threading.Thread(target=lambda: alive.accept()[0].sendall(reply()), daemon=True).start()
            assert fetcher(deadline=1.0, attempts=1)(f"http://half.example:{port}/x").content == b"image bytes"
        for waiting in queued:
            waiting.close()
        assert server.connections == 0


def test_public_addresses() -> None:
    for private in (
        "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "::127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "2002:a00:1::", "2001:db8::1", "2001::1", "100::1",
    ):  # fmt: skip
        assert not connections.is_public(private), private
    for public in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"):
        assert connections.is_public(public), public


@pytest.mark.parametrize(
    "spelling", ["127.0.0.1", "2130706433", "0x7f000001", "0177.1", "localhost", "[::ffff:127.0.0.1]"]
)
def test_loopback_is_refused_however_it_is_spelt(spelling: str) -> None:
    with raw_server({"/x": reply()}) as server:
        url = f"http://{spelling}:{server.port}/x"
        assert fetcher(allow_private_hosts=False)(url).reason == Reason.HOST_REFUSED
        assert server.connections == 0
        assert fetcher(deadline=3)(url).content == b"image bytes"
