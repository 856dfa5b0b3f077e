"""Our fetch against servers on loopback: answers, bodies, attempts, connections."""

import errno
import gzip
import socket
import threading
import time
from typing import Any

import pytest

from data.fetch.http import Fetched, HttpFetcher
from data.fetch.reasons import MEANING, TRANSIENT, Reason
from data.fetch.settings import FetchSettings
from data.images.resize import resize_image
from data.images.settings import ImageSettings
from tests.data.raw_server import RawServer, raw_server, reply

pytestmark = pytest.mark.timeout(30)
IMAGE = b"image bytes"


def fetcher(server: RawServer, **settings: Any) -> HttpFetcher:
    limits = {"deadline": 3.0, "max_bytes": 1_000_000, "attempts": 1} | settings
    return HttpFetcher(FetchSettings(**limits), trusted=server.authority)


def test_every_reason_has_a_meaning() -> None:
    assert set(MEANING) == set(Reason) and set(Reason) > TRANSIENT
    assert all(text and "\n" not in text for text in MEANING.values())


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (200, None), (203, None), (404, Reason.HTTP_4XX), (403, Reason.HTTP_4XX), (410, Reason.HTTP_4XX), (429, Reason.HTTP_429),
        (451, Reason.HTTP_4XX), (500, Reason.HTTP_5XX), (503, Reason.HTTP_5XX), (599, Reason.HTTP_5XX), (999, Reason.HTTP_OTHER),
        (204, Reason.HTTP_OTHER), (206, Reason.HTTP_OTHER), (304, Reason.HTTP_OTHER), (300, Reason.HTTP_OTHER),
        (301, Reason.HTTP_OTHER),
    ],
)  # fmt: skip
def test_a_status_has_a_reason_and_stands_beside_it(status: int, reason: Reason | None) -> None:
    body = b"" if status in (204, 304) else IMAGE
    with raw_server({"/x": reply(body, f"{status} Whatever")}) as server:
        found = fetcher(server)(server.url("/x"))
    assert (found.reason, found.http_status) == (reason, status)
    assert (found.content == IMAGE) == (reason is None)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (CHUNKED + b"5\r\nimage\r\n6;x=y\r\n bytes\r\n0\r\nTrailer: x\r\n\r\n", IMAGE),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + reply(IMAGE), IMAGE),
        (reply(gzip.compress(IMAGE), Content_Encoding="gzip"), IMAGE),
        (reply(IMAGE, Content_Encoding="gzip"), IMAGE),  # says so, and is not
        (reply(IMAGE, Content_Encoding="image/jpeg"), IMAGE),
        (reply(b""), b""),
        (reply(IMAGE, Content_Length=5), b"image"),  # the surplus is nobody's body
        (reply(IMAGE, X_Long="x" * 60_000), IMAGE),
    ],
)
def test_bodies_that_are_whole(answer: bytes, body: bytes) -> None:
    with raw_server({"/x": answer, "/ok": reply()}) as server:
        get = fetcher(server)
        for _ in range(3):
            assert get(server.url("/x")) == Fetched(body, http_status=200)
            assert get(server.url("/ok")).content == IMAGE


def test_a_body_that_ends_with_the_connection() -> None:
    for head in (CLOSING, b"HTTP/1.0 200 OK\r\n"):
        with raw_server({"/x": lambda c, head=head: c.sendall(head + b"\r\n" + IMAGE)}) as server:
            assert fetcher(server)(server.url("/x")).content == IMAGE


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(b"half", Content_Length=100), Reason.TRUNCATED),
        (CHUNKED + b"5\r\nim", Reason.TRUNCATED),
        (CHUNKED + b"zz\r\nimage\r\n", Reason.TRUNCATED),
        (CHUNKED + b"-1\r\nimage\r\n", Reason.TRUNCATED),
        (CHUNKED + b"5\r\nimage\r\n", Reason.TRUNCATED),
        (CHUNKED + b"FFFFFFFFFFFF\r\nimage\r\n", Reason.TRUNCATED),
        (reply(gzip.compress(IMAGE)[:-9], Content_Encoding="gzip"), Reason.TRUNCATED),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Reason.NOT_HTTP),
        (b"GIF89a and so on, as HTTP/0.9 would\r\n\r\n", Reason.NOT_HTTP),
        (b"HTTP/9.9 200 OK\r\n\r\n", Reason.NOT_HTTP),
        (b"HTTP/1.1 abc\r\n\r\n", Reason.NOT_HTTP),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, Reason.NOT_HTTP),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, Reason.NOT_HTTP),
        (b"", Reason.CONNECTION),
    ],
)
def test_broken_answers_have_a_reason(answer: bytes, reason: Reason) -> None:
    with raw_server({"/x": lambda connection: connection.sendall(answer)}) as server:
        found = fetcher(server)(server.url("/x"))
    assert found.content is None and found.reason == reason, found


def test_a_page_served_as_an_image_is_fetched_and_then_no_image() -> None:
    with raw_server({"/x.jpg": reply(b"<!DOCTYPE html><html>gone</html>", Content_Type="image/jpeg")}) as server:
        found = fetcher(server)(server.url("/x.jpg"))
    assert found.content is not None and resize_image(found.content, ImageSettings()).reason == Reason.NOT_AN_IMAGE


def test_a_reset_in_the_middle_of_a_body() -> None:
    def reset(connection: socket.socket) -> None:
        connection.sendall(reply(b"half", Content_Length=100))
        time.sleep(0.1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()

    with raw_server({"/x": reset}) as server:
        assert fetcher(server)(server.url("/x")).reason == Reason.CONNECTION


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"x" * 1001),
        reply(b"", Content_Length=10**15),
        CHUNKED + b"3E9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
        CLOSING + b"\r\n" + b"x" * 1001,
        reply(
            gzip.compress(b"\0" * 10_000_000, 1)[:900], Content_Encoding="gzip"
        ),  # inflates to too much before it breaks
        reply(gzip.compress(b"\0" * 900_000), Content_Encoding="gzip"),
    ],
)
def test_more_bytes_than_allowed(answer: bytes) -> None:
    with raw_server({"/x": answer}) as server:
        assert fetcher(server, max_bytes=1000)(server.url("/x")).reason == Reason.TOO_LARGE


def test_exactly_as_many_bytes_as_allowed() -> None:
    body = b"x" * 1000
    chunked = CHUNKED + b"3E8\r\n" + body + b"\r\n0\r\n\r\n"
    with raw_server({"/x": reply(body), "/chunked": chunked}) as server:
        get = fetcher(server, max_bytes=1000)
        assert [get(server.url(path)).content for path in ("/x", "/chunked")] == [body, body]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int) -> None:
    with raw_server({"/a/x": reply(b"", f"{status} Elsewhere", Location="../b c"), "/b%20c": reply()}) as server:
        assert fetcher(server)(server.url("/a/x")) == Fetched(IMAGE, http_status=200)
        assert fetcher(server, max_redirects=0)(server.url("/a/x")).reason == Reason.TOO_MANY_REDIRECTS


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/x", Reason.TOO_MANY_REDIRECTS),
        ("file:///etc/passwd", Reason.BAD_URL),
        ("ftp://127.0.0.1/x", Reason.BAD_URL),
        ("http://127.0.0.1:9/secret", Reason.HOST_REFUSED),
        ("http://169.254.169.254/latest/meta-data/", Reason.HOST_REFUSED),
        ("//2130706433:9/", Reason.HOST_REFUSED),
        ("http://[::ffff:10.0.0.1]/", Reason.HOST_REFUSED),
    ],
)
def test_redirects_that_lead_nowhere(location: str, reason: Reason) -> None:
    with raw_server({"/x": reply(b"", "302 Found", Location=location)}) as server:
        assert fetcher(server)(server.url("/x")).reason == reason
        assert len(server.heads) == (6 if reason == Reason.TOO_MANY_REDIRECTS else 1)


def test_no_redirect_reaches_a_private_server() -> None:
    with raw_server({"/secret": reply()}) as private:
        for location in (private.url("/secret"), f"//localhost:{private.port}/secret"):
            with raw_server({"/x": reply(b"", "302 Found", Location=location)}) as public:
                assert fetcher(public)(public.url("/x")).reason == Reason.HOST_REFUSED
        assert private.connections == 0  # not a packet


def test_what_is_sent() -> None:
    with raw_server({"/x%20y": reply()}) as server:
        get = fetcher(server, user_agent="tool/1.0 (us)", contact="https://us.example/crawl")
        assert get(server.url("/x y\r\nX-Injected: 1?a b")).reason == Reason.HTTP_4XX
        assert get(server.url("/x y")).content == IMAGE
        line, *headers = server.heads[-1].split("\r\n")
    assert line == "GET /x%20y HTTP/1.1"
    assert sorted(headers) == [
        "Accept-Encoding: identity", "Accept: image/*,*/*;q=0.5", f"Host: {server.authority}",
        "User-Agent: tool/1.0 (us) (+https://us.example/crawl)",
    ]  # fmt: skip
    assert len(server.heads[0].split("\r\n")) == len(headers) + 1  # nothing was injected


# attempts


def test_only_what_can_change_is_tried_again() -> None:
    answers = {"/flaky": [reply(b"", "503 No"), reply(b"", "500 No"), reply()], "/gone": reply(b"", "410 Gone")}
    with raw_server(answers) as server:
        get = fetcher(server, attempts=3)
        found = get(server.url("/flaky"))
        assert (found.content, found.attempts) == (IMAGE, 3)
        first, second = (b - a for a, b in zip(server.times, server.times[1:], strict=False))
        assert 0.25 <= first < 1.0 and 0.5 <= second < 2.0  # backoff
        assert get(server.url("/gone")).attempts == 1


def test_what_nobody_was_asked_for_has_no_attempt() -> None:
    with raw_server({"/moved": reply(b"", "302 Found", Location="http://10.0.0.1/")}) as server:
        get = fetcher(server, attempts=3)
        assert [get(url).attempts for url in ("ftp://h/x", "http://10.0.0.1/x", server.url("/moved"))] == [0, 0, 1]


def test_the_pauses_of_different_urls_differ_and_those_of_one_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("data.fetch.http.time.sleep", slept.append)
    with raw_server({"/a": reply(b"", "500 No"), "/b": reply(b"", "500 No")}) as server:
        get = HttpFetcher(FetchSettings(attempts=2), rewrite=lambda path: server.url(path), trusted=server.authority)
        for path in ("/a", "/b", "/a"):
            get(path)
    assert slept[0] == slept[2] != slept[1]
    assert all(0.25 <= pause <= 0.5 for pause in slept)


def test_no_attempt_after_the_deadline() -> None:
    with raw_server({"/x": reply(b"", "500 No")}) as server:
        start = time.monotonic()
        assert fetcher(server, attempts=9, deadline=0.2)(server.url("/x")).attempts == 1
        assert time.monotonic() - start < 1


# connections


def test_a_connection_is_used_again_after_a_whole_body_only() -> None:
    with raw_server(
        {"/ok": reply(), "/chunked": CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", "/no": reply(b"no", "404 No")}
    ) as server:
        get = fetcher(server)
        for path in ("/ok", "/chunked", "/ok", "/empty"):
            get(server.url(path))
        assert server.connections == 1
        get(server.url("/no"))  # its body is not read
        assert get(server.url("/ok")).content == IMAGE
        assert server.connections == 2


@pytest.mark.parametrize("late", [0.0, 0.2])
def test_a_connection_that_the_server_closed_meanwhile_costs_no_attempt(late: float) -> None:
    def once(connection: socket.socket) -> None:
        connection.sendall(reply())
        time.sleep(late)

    with raw_server({"/ok": once}) as server:
        get = fetcher(server)
        for wait in (0.0, 0.3, 0.0):
            time.sleep(wait)
            assert get(server.url("/ok")) == Fetched(IMAGE, http_status=200)
        assert server.connections == 3


def test_kept_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "data.fetch.dns.socket.getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
    )
    with raw_server({"/ok": reply()}) as server:
        get = HttpFetcher(FetchSettings(threads=2, allow_private_hosts=True))
        for host in range(10):
            assert get(f"http://bounded-{host}.example:{server.port}/ok").content == IMAGE
        assert (get._connections._count, len(get._connections._idle)) == (4, 4)
        assert get(f"http://bounded-9.example:{server.port}/ok").content == IMAGE
        assert server.connections == 10


def test_many_threads_share_one_fetcher() -> None:
    bodies = {f"/{n}": reply(str(n).encode() * 1000) for n in range(50)}
    with raw_server(bodies) as server:
        get = fetcher(server)
        wrong: list[object] = []

        def work(first: int) -> None:
            for n in range(first, first + 50):
                if get(server.url(f"/{n % 50}")).content != str(n % 50).encode() * 1000:
                    wrong.append(n)

        threads = [threading.Thread(target=work, args=(7 * n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong and server.connections <= 8


@pytest.mark.parametrize("ours", [OSError(errno.EMFILE, "Too many open files"), IndexError("a mistake of ours")])
def test_our_own_trouble_is_raised_and_never_a_reason(ours: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ours

    monkeypatch.setattr("data.fetch.connections._connect", fail)
    with raw_server({}) as server, pytest.raises(type(ours), match=str(ours.args[-1])):
        fetcher(server)(server.url("/x"))
