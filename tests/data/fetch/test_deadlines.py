"""The total deadline over handshakes, headers, bodies, attempts; endless answers; and what TLS refuses."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.fetch import connections
from data.fetch.http import Fetched, HttpFetcher
from data.fetch.reasons import Reason
from data.fetch.settings import FetchSettings
from tests.data.raw_server import drip, raw_server, reply

pytestmark = pytest.mark.timeout(30)
DEADLINE = 0.3


def fetcher(**settings: Any) -> HttpFetcher:
    limits = {"deadline": DEADLINE, "max_bytes": 1_000_000, "attempts": 2, "allow_private_hosts": True} | settings
    return HttpFetcher(FetchSettings(**limits))


def timed(get: Callable[[], Fetched]) -> tuple[Fetched, float]:
    start = time.monotonic()
    return get(), time.monotonic() - start


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        drip(b""),
        drip(b"", pause=9),  # silence
        drip(b"HTTP/1.1 200 OK\r\nX-Slow: "),
        drip(b"HTTP/1.1 200 OK\r\n", b"", pause=9),  # stalled headers
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.01),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
        drip(CHUNKED, b"1\r\nx\r\n"),
        drip(CHUNKED + b"0\r\n", b"Trailer: x\r\n", pause=0.01),
    ],
)
def test_the_deadline_is_total_not_per_read(answer: object) -> None:
    with raw_server({"/x": answer}) as server:
        found, seconds = timed(lambda: fetcher()(server.url("/x")))
    assert found.reason == Reason.TIMEOUT, found
    assert DEADLINE <= seconds < DEADLINE + 0.5


def test_attempts_and_redirects_share_one_deadline() -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(0.15)
        connection.sendall(reply(b"", "302 Found", Location="/x"))

    with raw_server({"/x": slow}) as server:
        found, seconds = timed(lambda: fetcher(max_redirects=50, attempts=9)(server.url("/x")))
    assert found.reason == Reason.TIMEOUT and seconds < DEADLINE + 0.5


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", CHUNKED]
)
def test_endless_bodies_end_by_their_bytes(start: bytes) -> None:
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n" if start == CHUNKED else b"x" * 65536
    with raw_server({"/x": drip(start, piece, pause=0)}) as server:
        assert fetcher(deadline=5)(server.url("/x")).reason == Reason.TOO_LARGE


def test_endless_headers_end() -> None:
    for piece in (b"X: y\r\n", b"x" * 65536):
        with raw_server({"/x": drip(b"HTTP/1.1 200 OK\r\n", piece, pause=0)}) as server:
            assert fetcher(deadline=5)(server.url("/x")).reason == Reason.NOT_HTTP


def test_an_error_body_is_not_waited_for() -> None:
    for status in ("404 Not Found", "302 Found\r\nLocation: /ok"):
        slow = drip(f"HTTP/1.1 {status}\r\nContent-Length: 1000\r\n\r\n".encode())
        with raw_server({"/x": slow, "/ok": reply()}) as server:
            found, seconds = timed(lambda server=server: fetcher(deadline=5, attempts=1)(server.url("/x")))
        assert found.reason in (Reason.HTTP_4XX, None) and seconds < 1


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command for a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    yield path


@pytest.fixture
def tls_port(certificate: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.with_suffix(".crt"), certificate)

    def serve(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as tls:
                while tls.recv(65536):
                    tls.sendall(reply(b"over TLS" * 10_000))
        except OSError:
            pass

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_certificates_are_verified(tls_port: int, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetcher(deadline=3)(f"https://localhost:{tls_port}/x").reason == Reason.TLS  # self-signed
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
    connections._tls_context.cache_clear()
    try:
        get = fetcher(deadline=3)
        for _ in range(2):  # the second time over the connection that stands
            assert get(f"https://localhost:{tls_port}/x").content == b"over TLS" * 10_000
        assert get(f"https://127.0.0.1:{tls_port}/x").reason == Reason.TLS  # another name than the certificate's
    finally:
        connections._tls_context.cache_clear()


def test_a_server_that_speaks_no_tls() -> None:
    with raw_server({}) as server:
        server.listener.settimeout(None)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(
                target=lambda: listener.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), daemon=True
            ).start()
            assert (
                fetcher(attempts=1, deadline=3)(f"https://127.0.0.1:{listener.getsockname()[1]}/").reason == Reason.TLS
            )


def test_a_stalled_tls_handshake_meets_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and never says a word
        found, seconds = timed(lambda: fetcher()(f"https://127.0.0.1:{listener.getsockname()[1]}/x"))
    assert found.reason == Reason.TIMEOUT and seconds < DEADLINE + 0.5
