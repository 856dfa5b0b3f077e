"""Our fetch: one URL to bytes, within limits, from public hosts only. URLs and servers are hostile until proven otherwise."""

import errno
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import Timeout
from urllib3.util.ssl_ import create_urllib3_context

from data.fetch.reasons import TRANSIENT, Reason
from data.fetch.settings import FetchSettings

CHUNK = 1 << 16
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)  # our own trouble: it says nothing about a URL
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none", "noml"})
# Directives whose own syntax has a colon; any other "word:" in front names the agent that the directive is for.
VALUED_DIRECTIVES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


@dataclass(frozen=True)
class Fetched:
    """Bytes, or a reason; `detail` is free text for the log and never enters the ledger."""

    content: bytes | None = None
    reason: Reason | None = None
    http_status: int | None = None
    attempts: int = 1
    detail: str = ""


class HostRefused(Exception):
    """The address that was connected to is not public."""


class _Clock(threading.local):
    """When the fetch that this thread is making must end, on the monotonic clock."""

    deadline = float("inf")

    def left(self) -> float:
        """Seconds until then, always positive. Raises TimeoutError once it has passed."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline passed")
        return left


class HttpFetcher:
    """Fetches with pooled connections; safe to share between threads.

    `settings` sets deadline, byte and redirect limits. `trusted` names one `host:port` that may be private: the loopback server
    that a source of ours started.
    """

    def __init__(
        self, settings: FetchSettings, trusted: str | None = None, rewrite: Callable[[str], str] | None = None
    ) -> None:
        self.settings = settings
        self.rewrite = rewrite or (lambda url: url)
        self._clock = _Clock()
        plain, tls = _timed_sockets(self._clock)
        context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
        context.load_default_certs()
        context.sslsocket_class = tls
        self._pool = urllib3.PoolManager(num_pools=64, maxsize=settings.threads, retries=False, ssl_context=context)
        self._pool.pool_classes_by_scheme = _guarded_pools(settings.allow_private_hosts, trusted, self._clock, plain)

    def __call__(self, url: str) -> Fetched:
        """Try until it works, until trying again can't help, or until the attempts or the deadline are used up.

        Raises OSError when this process or machine is out of file descriptors, and whatever is a mistake of ours.
        """
        deadline = self._clock.deadline = time.monotonic() + self.settings.deadline
        for attempt in range(1, self.settings.attempts + 1):
            found = self._once(self.rewrite(url))
            found = Fetched(found.content, found.reason, found.http_status, attempt, found.detail)
            pause = 0.1 * 2 ** (attempt - 1)
            if (
                found.reason not in TRANSIENT
                or attempt == self.settings.attempts
                or time.monotonic() + pause >= deadline
            ):
                return found
            time.sleep(pause)
        return found

    def _once(self, url: str) -> Fetched:
        try:
            for _ in range(self.settings.max_redirects + 1):
                if not _is_web_url(url):
                    return Fetched(reason=Reason.BAD_URL, detail="only http and https are fetched")
                response = self._pool.request(
                    "GET", url, preload_content=False, redirect=False, timeout=Timeout(total=self._clock.left()),
                    headers={"User-Agent": self.settings.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
                )  # fmt: skip
                try:
                    location = response.headers.get("Location")
                    if response.status in (301, 302, 303, 307, 308) and location:
                        url = urljoin(url, location)
                        continue
                    return self._read(response)
                finally:
                    # What is left of an unread body would be taken for the next response on that connection.
                    if not response.closed:
                        response.close()
                    response.release_conn()
            return Fetched(reason=Reason.TOO_MANY_REDIRECTS)
        except (urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError, HostRefused) as error:
            _raise_if_out_of_files(error)
            return Fetched(reason=_reason_of(error), detail=f"{type(error).__name__}: {error}"[:300])

    def _read(self, response: urllib3.BaseHTTPResponse) -> Fetched:
        status = response.status
        if status == 429:
            return Fetched(reason=Reason.HTTP_429, http_status=status)
        if status >= 500:
            return Fetched(reason=Reason.HTTP_5XX, http_status=status)
        if status != 200:
            return Fetched(reason=Reason.HTTP_4XX, http_status=status)
        if self.settings.respect_robots_tag and is_opted_out(
            response.headers.getlist("X-Robots-Tag"), self.settings.user_agent
        ):
            return Fetched(reason=Reason.OPTED_OUT, http_status=status)
        chunks, size = [], 0
        while True:
            chunk = response.read1(CHUNK, decode_content=False)
            if not chunk:
                break
            size += len(chunk)
            chunks.append(chunk)
            if size > self.settings.max_bytes:
                return Fetched(reason=Reason.TOO_LARGE, http_status=status)
        promised = response.headers.get("Content-Length")
        if promised and promised.isdigit() and int(promised) != size:
            return Fetched(reason=Reason.TRUNCATED, http_status=status, detail=f"{size} of {promised} bytes")
        return Fetched(b"".join(chunks), http_status=status)


def is_opted_out(values: list[str], user_agent: str) -> bool:
    """Whether X-Robots-Tag headers ask us not to use the image: for everybody, or for our agent's first word."""
    agent = next(iter(user_agent.split()), "").split("/")[0].lower()
    for value in values:
        addressee = ""
        for item in value.lower().split(","):
            name, colon, rest = item.strip().partition(":")
            if colon and name.strip() not in VALUED_DIRECTIVES:
                addressee, item = name.strip(), rest
            if item.strip() in OPT_OUT and addressee in ("", "*", agent):
                return True
    return False


def is_public(address: str) -> bool:
    """Whether an IP address is globally routable (not private, loopback, link-local, multicast or reserved)."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast


def _is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _timed_sockets(clock: _Clock) -> tuple[type[socket.socket], type[ssl.SSLSocket]]:
    """Socket classes, plain and TLS, whose every read ends by the clock's deadline.

    A socket timeout alone bounds one read, so that a server which drips headers or a body would hold a thread for ever.
    """

    class Plain(socket.socket):
        def recv_into(self, *arguments: Any) -> int:
            self.settimeout(clock.left())
            return super().recv_into(*arguments)

    class TLS(ssl.SSLSocket):
        def recv_into(self, *arguments: Any) -> int:
            self.settimeout(clock.left())
            return super().recv_into(*arguments)

    return Plain, TLS


def _guarded_pools(
    allow_private: bool, trusted: str | None, clock: _Clock, socket_class: type[socket.socket]
) -> dict[str, type]:
    """Pool classes whose connections check the address they are connected to, after name resolution and on every redirect."""

    def guarded(host: str, port: int | None, peer: socket.socket) -> socket.socket:
        address = peer.getpeername()[0]
        if not (allow_private or f"{host}:{port}" == trusted or is_public(address)):
            peer.close()
            raise HostRefused(f"{host} is at {address}, which is not a public address")
        timed = socket_class(fileno=peer.detach())
        timed.settimeout(clock.left())  # bounds the TLS handshake, which is one call
        return timed

    class GuardedHTTP(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return guarded(self.host, self.port, super()._new_conn())

    class GuardedHTTPS(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return guarded(self.host, self.port, super()._new_conn())

    class HTTPPool(HTTPConnectionPool):
        ConnectionCls = GuardedHTTP

    class HTTPSPool(HTTPSConnectionPool):
        ConnectionCls = GuardedHTTPS

    return {"http": HTTPPool, "https": HTTPSPool}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what is behind it, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        reason = getattr(seen, "reason", None)
        seen = reason if isinstance(reason, BaseException) else seen.__cause__ or seen.__context__


def _raise_if_out_of_files(error: BaseException) -> None:
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in OUT_OF_FILES:
            raise cause


def _reason_of(error: BaseException) -> Reason:
    """The typed reason behind urllib3's exceptions, looking through the chain of causes."""
    for seen in _causes(error):
        if isinstance(seen, HostRefused):
            return Reason.HOST_REFUSED
        if isinstance(seen, urllib3.exceptions.NameResolutionError | socket.gaierror):
            return Reason.DNS
        if isinstance(seen, urllib3.exceptions.TimeoutError | TimeoutError):
            return Reason.TIMEOUT
        if isinstance(seen, urllib3.exceptions.SSLError):
            return Reason.TLS
        if isinstance(seen, urllib3.exceptions.LocationValueError | UnicodeError | ValueError):
            return Reason.BAD_URL
        if isinstance(seen, urllib3.exceptions.IncompleteRead):
            return Reason.TRUNCATED
    return Reason.CONNECTION
