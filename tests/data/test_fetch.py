"""Our fetch against servers on loopback that misbehave."""

import errno
import gzip
import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.errors import UserError
from data.fetch.files import FolderFetcher, file_url
from data.fetch.http import HttpFetcher, is_opted_out, is_public
from data.fetch.reasons import Reason
from data.fetch.settings import FetchSettings
from data.plan import plan_table
from data.sources.folder import folder_candidates
from data.sources.settings import FolderSettings, SplitSettings, TableSettings
from data.sources.table import table_candidates


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hits: dict[str, int]

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.hits[name] = self.hits.get(name, 0) + 1
        getattr(self, name.split("-")[0])(name)

    def reply(self, body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def ok(self, _: str) -> None:
        self.reply(b"image bytes")

    def status(self, name: str) -> None:
        self.reply(b"no", int(name.split("-")[1]))

    def flaky(self, name: str) -> None:
        self.reply(b"now it works") if self.hits[name] > 1 else self.reply(b"", 503)

    def short(self, _: str) -> None:
        self.reply(b"half", length=100)
        self.close_connection = True

    def drip(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _i in range(100):
            try:
                self.wfile.write(b".")
                time.sleep(0.1)
            except OSError:
                return

    def drip_headers(self, _: str) -> None:
        self.drip_bytes(b"HTTP/1.1 200 OK\r\nX-Slow: ")

    def drip_error(self, _: str) -> None:
        self.drip_bytes(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n")

    def drip_bytes(self, start: bytes) -> None:
        self.close_connection = True
        try:
            self.wfile.write(start)
            for _i in range(50):
                self.wfile.write(b".")
                time.sleep(0.1)
        except OSError:
            return

    def chunked(self, name: str) -> None:
        """`chunked-<status>`: a body without a length, on a connection that stays open."""
        self.send_response(int(name.split("-")[1]))
        self.send_header("Location", "/ok")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nhello\r\n0\r\n\r\n")

    def endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * 65536)
        except OSError:
            self.close_connection = True

    def bomb(self, _: str) -> None:
        self.reply(gzip.compress(b"\0" * 10_000_000), Content_Encoding="gzip")

    def loop(self, name: str) -> None:
        self.reply(status=302, Location=f"/{name}")

    def away(self, _: str) -> None:
        self.reply(status=302, Location="file:///etc/passwd")

    def private(self, _: str) -> None:
        self.reply(status=302, Location="http://127.0.0.2:9/secret")

    def noai(self, _: str) -> None:
        self.reply(b"image", X_Robots_Tag="max-image-preview:large, noai")

    def hang(self, _: str) -> None:
        time.sleep(5)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[str]:
    handler = type("Handler", (Server,), {"hits": {}})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.daemon_threads = True
    running.hits = handler.hits  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def fetch(server: str, name: str, **settings: object) -> object:
    limits = FetchSettings(**({"deadline": 3.0, "max_bytes": 1_000_000, "attempts": 1} | settings))  # type: ignore[arg-type]
    return HttpFetcher(limits, trusted=server)(f"http://{server}/{name}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("status-404", Reason.HTTP_4XX),
        ("status-403", Reason.HTTP_4XX),
        ("status-410", Reason.HTTP_4XX),
        ("status-429", Reason.HTTP_429),
        ("status-500", Reason.HTTP_5XX),
        ("short", Reason.TRUNCATED),
        ("endless", Reason.TOO_LARGE),
        ("loop", Reason.TOO_MANY_REDIRECTS),
        ("away", Reason.BAD_URL),
        ("private", Reason.HOST_REFUSED),
        ("noai", Reason.OPTED_OUT),
    ],
)
def test_what_a_server_can_do_to_us_has_a_reason(server: str, name: str, reason: Reason) -> None:
    if name == "private":  # something must listen there, or the connection would fail before the address is judged
        with socket.create_server(("127.0.0.2", 0)) as listener:
            port = listener.getsockname()[1]
            found: object = HttpFetcher(FetchSettings(attempts=1, deadline=3.0), trusted=server)(
                f"http://127.0.0.2:{port}/x"
            )
    else:
        found = fetch(server, name)
    assert found.content is None  # type: ignore[attr-defined]
    assert found.reason == reason, found  # type: ignore[attr-defined]


def test_the_deadline_is_total_not_per_read(server: str) -> None:
    for name in ("drip", "hang", "drip_headers"):
        start = time.monotonic()
        assert fetch(server, name, deadline=0.7).reason == Reason.TIMEOUT, name  # type: ignore[attr-defined]
        assert time.monotonic() - start < 1.7, name


def test_an_error_body_is_not_waited_for(server: str) -> None:
    start = time.monotonic()
    assert fetch(server, "drip_error").reason == Reason.HTTP_4XX  # type: ignore[attr-defined]
    assert time.monotonic() - start < 1.5


def test_a_stalled_tls_handshake_meets_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and never says a word
        get = HttpFetcher(FetchSettings(attempts=1, deadline=0.7, allow_private_hosts=True))
        start = time.monotonic()
        assert get(f"https://127.0.0.1:{listener.getsockname()[1]}/x").reason == Reason.TIMEOUT
        assert time.monotonic() - start < 1.7


@pytest.mark.parametrize("refused", ["chunked-404", "status-404", "noai", "endless"])
def test_an_unread_body_never_reaches_the_next_request(server: str, refused: str) -> None:
    get = HttpFetcher(FetchSettings(attempts=1, deadline=5.0, max_bytes=100_000), trusted=server)
    for _ in range(3):
        assert get(f"http://{server}/{refused}").content is None
        for good, body in (("ok", b"image bytes"), ("chunked-200", b"hello"), ("chunked-302", b"image bytes")):
            assert get(f"http://{server}/{good}").content == body, good


def test_a_body_read_to_its_end_leaves_its_connection_to_the_next(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    connect = socket.create_connection

    def counted(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
        opened.append(address)
        return connect(address)

    monkeypatch.setattr("urllib3.util.connection.create_connection", counted)
    get = HttpFetcher(FetchSettings(attempts=1), trusted=server)
    assert [get(f"http://{server}/{name}").content for name in ("ok", "chunked-200", "ok")] == [
        b"image bytes", b"hello", b"image bytes",
    ]  # fmt: skip
    assert len(opened) == 1


def test_robots_tag_for_an_agent_without_a_name() -> None:
    assert is_opted_out(["noai"], "")
    assert is_opted_out(["noai"], " ") and not is_opted_out(["googlebot: noai"], "")


@pytest.mark.parametrize("ours", [OSError(errno.EMFILE, "Too many open files"), IndexError("a mistake of ours")])
def test_our_own_trouble_is_raised_and_never_a_reason(
    server: str, ours: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ours

    monkeypatch.setattr("urllib3.util.connection.create_connection", fail)
    with pytest.raises(type(ours), match=str(ours.args[-1])):
        fetch(server, "ok")


def test_a_compressed_body_is_never_inflated(server: str) -> None:
    found = fetch(server, "bomb")
    assert found.content is not None and len(found.content) < 20_000  # type: ignore[attr-defined]


def test_only_what_can_change_is_tried_again(server: str) -> None:
    found = fetch(server, "flaky", attempts=3)
    assert (found.content, found.attempts) == (b"now it works", 2)  # type: ignore[attr-defined]
    assert fetch(server, "status-404", attempts=3).attempts == 1  # type: ignore[attr-defined]


def test_bad_urls_are_refused_before_anything_is_opened() -> None:
    get = HttpFetcher(FetchSettings(attempts=1, deadline=1.0))
    for url in (
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "ftp://h/x",
        "",
        "http://",
        "not a url",
        "http://[::1",
        "http://h:99999/",
    ):
        assert get(url).reason == Reason.BAD_URL, url


def test_loopback_is_refused_unless_allowed(server: str) -> None:
    assert HttpFetcher(FetchSettings(attempts=1))(f"http://{server}/ok").reason == Reason.HOST_REFUSED
    assert (
        HttpFetcher(FetchSettings(attempts=1, allow_private_hosts=True))(f"http://{server}/ok").content
        == b"image bytes"
    )
    assert fetch(server, "ok").content == b"image bytes"  # type: ignore[attr-defined]


def test_public_addresses() -> None:
    for private in (
        "127.0.0.1",
        "10.0.0.1",
        "172.16.3.4",
        "192.168.1.1",
        "169.254.169.254",
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:10.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ):
        assert not is_public(private), private
    for public in ("8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8"):
        assert is_public(public), public


def test_robots_tag_is_read_in_full() -> None:
    ours = "unclip-toolkit (research)"
    for value in (
        "noai",
        "NoAI",
        "none",
        "noml",
        "noindex, nofollow",
        "max-image-preview:large, noai",
        "unavailable_after: 25 Jun 2030, noimageai",
        "unclip-toolkit: noai",
        "*: noai",
    ):
        assert is_opted_out([value], ours), value
    for value in ("", "all", "nofollow", "max-snippet:20", "googlebot: noai", "otherbot: noindex, noai"):
        assert not is_opted_out([value], ours), value
    assert is_opted_out(["all", "noai"], ours)


def test_folder_fetcher_stays_in_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "a b%.png").write_bytes(b"fine")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    get = FolderFetcher(root, max_bytes=10)
    assert get(file_url("a b%.png")).content == b"fine"
    for name in ("../secret.png", "link.png", str(tmp_path / "secret.png")):
        assert get(file_url(name)).reason == Reason.PATH_REFUSED, name
    assert get(file_url("none.png")).reason == Reason.FILE_MISSING
    assert get(file_url("nul\0.png")).reason == Reason.FILE_UNREADABLE
    (root / "big.png").write_bytes(b"x" * 11)
    assert get(file_url("big.png")).reason == Reason.TOO_LARGE


def test_file_names_that_are_not_utf8_are_planned_and_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"latin")
    (tmp_path / "captions.csv").write_bytes(b"file,caption\ncaf\xe9.png,a caf\xe9\n")
    found = list(folder_candidates(FolderSettings(path=str(tmp_path))))
    assert [(c.source_id, c.captions) for c in found] == [("caf\\xe9.png", ("a caf\ufffd",))]
    plan = plan_table(iter(found), 10, SplitSettings(), 0)
    pq.write_table(plan, tmp_path / "plan.parquet")
    url = pq.read_table(tmp_path / "plan.parquet")["url"][0].as_py()
    assert FolderFetcher(tmp_path, max_bytes=10)(url).content == b"latin"


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://h/x"] * 1000, "caption": [str(i) for i in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:-4000] = b"\xff" * (len(content) - 4004)  # the footer, with the schema, stays readable
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read .*list.parquet") as raised:
        list(table_candidates(TableSettings(path=str(path))))
    assert "\n" not in str(raised.value)


def test_rows_without_a_url_are_one_candidate(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(
        '{"url": "", "caption": "a"}\n{"url": null, "caption": "b"}\n{"url": "http://h/x", "caption": "c"}\n'
    )
    found = [(c.source_id, c.url, c.captions) for c in table_candidates(TableSettings(path=str(path)))]
    assert found == [("(no url)", "", ("a", "b")), ("http://h/x", "http://h/x", ("c",))]
