"""Heads of answers that a mail parser gives up on: what stands behind the line that is no header counts all the same."""

import io
import socket
import time
from http.client import HTTPException, IncompleteRead

import pytest

from data.fetch.headers import read_headers
from data.fetch.http import HttpFetcher
from data.fetch.reasons import Reason
from data.fetch.settings import FetchSettings
from tests.data.raw_server import raw_server, reply

pytestmark = pytest.mark.timeout(30)
# Lines after which http.client's parser takes the rest of the head for a body, and other oddities of real servers.
MALFORMED = [
    b"Server : x\r\n", b"this is no header\r\n", b"X-A: a\rb\r\n", b": nameless\r\n", b" folded without a line above\r\n",
    b"X-A: a\x0bb\x0cc\x1cd\r\n", b"\xff\xfe: \x00\r\n", b"<html>\r\n", b"HTTP/1.1 200 OK\r\n", b"\r\r\n", b"X-A:\r\n\tb\r\n", b"X\n",
]  # fmt: skip


def fetcher(authority: str) -> HttpFetcher:
    return HttpFetcher(FetchSettings(attempts=1, deadline=3.0), trusted=authority)


def answer(status: str, fields: bytes, body: bytes = b"body") -> bytes:
    return b"HTTP/1.1 " + status.encode() + b"\r\n" + fields + b"\r\n" + body


@pytest.mark.parametrize("line", MALFORMED)
def test_what_follows_a_malformed_line_counts(line: bytes) -> None:
    short = answer("200 OK", line + b"Content-Length: 100\r\nConnection: close\r\n")
    answers = {
        "/noai": answer("200 OK", line + b"X-Robots-Tag: noai\r\nContent-Length: 4\r\n"),
        "/whole": answer("200 OK", line + b"Content-Length: 4\r\n"),
        "/short": lambda connection: connection.sendall(short),
        "/gone": answer("302 Found", line + b"Location: /whole\r\nContent-Length: 0\r\n", b""),
        "/busy": answer("429 Slow", line + b"Retry-After: 3600\r\nContent-Length: 0\r\n", b""),
    }
    with raw_server(answers) as server:
        get = fetcher(server.authority)
        assert get(server.url("/noai")).reason == Reason.OPTED_OUT
        for path in ("/whole", "/whole", "/gone"):
            assert get(server.url(path)).content == b"body"
        assert server.connections == 3  # only the bodies of the opt-out and of the redirect were not read to their ends
        assert get(server.url("/short")).reason == Reason.TRUNCATED
        found, wait = get._follow(server.url("/busy"), type("Clock", (), {"deadline": time.monotonic() + 3}))  # type: ignore[arg-type]
        assert (found.reason, wait) == (Reason.HTTP_429, 3600)


@pytest.mark.parametrize(
    "fields",
    [
        b"X-Robots-Tag : noai", b"x-ROBOTS-tag:noai", b"X-Robots-Tag:\r\n noai", b"X-Robots-Tag: all\r\nX-A: b\r\nX-Robots-Tag: noai",
        b" X-Robots-Tag: noai", b"X-A: a\rX-Robots-Tag: noai", b"X-Robots-Tag: \xc2\xa0noai", b"no header\r\n X-Robots-Tag: noai",
        b"X-Robots-Tag: all,\r\n\tnoai", b"X-Robots-Tag:\tnoai \r",
    ],
)  # fmt: skip
def test_an_opt_out_however_it_is_written(fields: bytes) -> None:
    with raw_server({"/x": answer("200 OK", fields + b"\r\nContent-Length: 4\r\n")}) as server:
        assert fetcher(server.authority)(server.url("/x")).reason == Reason.OPTED_OUT


def test_a_head_that_is_cut_off_is_no_answer() -> None:
    def cut(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nServer: x\r\nX-Robo")

    with raw_server({"/x": cut}) as server:
        assert fetcher(server.authority)(server.url("/x")).reason == Reason.TRUNCATED
    with pytest.raises(IncompleteRead):
        read_headers(io.BytesIO(b"X-A: b\r\n"))


@pytest.mark.parametrize(
    ("fields", "reason", "body"),
    [
        (b"Content-Length: 3\r\nContent-Length: 4", Reason.NOT_HTTP, None),
        (b"Content-Length: 4, 5", Reason.NOT_HTTP, None),
        (b"Transfer-Encoding: gzip, chunked", Reason.NOT_HTTP, None),
        (b"Content-Length: 4\r\nContent-Length: 4", None, b"body"),
        (b"Content-Length: -3", None, b"body-until the end"),
        (b"Content-Length: 1_0", None, b"body-until the end"),
        (b"Content-Length: " + b"9" * 5000, None, b"body-until the end"),
    ],
)
def test_lengths_that_contradict_each_other_or_are_none(
    fields: bytes, reason: Reason | None, body: bytes | None
) -> None:
    sent = answer("200 OK", fields + b"\r\n", b"body-until the end")
    with raw_server({"/x": lambda connection: connection.sendall(sent)}) as server:
        found = fetcher(server.authority)(server.url("/x"))
    assert (found.reason, found.content) == (reason, body)


def test_a_head_is_bounded() -> None:
    for head in (b"X: y\r\n" * 200, b"X: " + b"y" * 70_000, b"\r" * 10 + b"X: y\r" * 200 + b"\n"):
        with pytest.raises(HTTPException):
            read_headers(io.BytesIO(head + b"\r\n"))


def test_an_interim_answer_is_read_over_with_its_malformed_lines() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nno header\r\nX-Robots-Tag: all\r\n\r\n"
    with raw_server({"/x": hints + reply(X_Robots_Tag="noai"), "/y": hints + reply()}) as server:
        assert fetcher(server.authority)(server.url("/x")).reason == Reason.OPTED_OUT
        assert fetcher(server.authority)(server.url("/y")).content == b"image bytes"
