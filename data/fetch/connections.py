"""Connections to public hosts that end by a deadline, kept open for the next request to the same host.

No packet goes to an address that is not public: the addresses of a name are judged before connecting, and the peer after it.
"""

import ipaddress
import select
import socket
import ssl
import threading
import time
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from data.fetch import dns
from data.fetch.urls import Url

NAT64 = ipaddress.ip_network("64:ff9b::/96")
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


class HostRefused(Exception):
    """The host has no public address."""


def seconds_left(deadline: float) -> float:
    """Until `deadline` on the monotonic clock, always positive. Raises TimeoutError once it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline passed")
    return left


class _Timed(socket.socket):
    """Every read ends by `deadline`: a timeout alone bounds one read, and a server that drips would hold a thread for ever."""

    deadline = float("inf")

    def recv_into(self, *arguments: Any) -> int:
        self.settimeout(seconds_left(self.deadline))
        return super().recv_into(*arguments)


class _TimedTLS(ssl.SSLSocket):
    deadline = float("inf")

    def recv_into(self, *arguments: Any) -> int:
        self.settimeout(seconds_left(self.deadline))
        return super().recv_into(*arguments)


Timed = _Timed | _TimedTLS


class Connections:
    """A pool; safe to share between threads. `trusted` names one `host:port` that need not be public."""

    def __init__(self, allow_private: bool, trusted: str | None, keep: int) -> None:
        self._allow_private, self._trusted, self._most = allow_private, trusted, keep
        self._idle: OrderedDict[str, list[Timed]] = OrderedDict()  # by origin; the first waits longest
        self._count = 0
        self._lock = threading.Lock()

    def take(self, origin: str, deadline: float) -> Timed | None:
        """A connection that stands open, if there is one; dead ones, and those on which something unasked has come, are closed."""
        while True:
            with self._lock:
                idle = self._idle.get(origin)
                if not idle:
                    return None
                found = idle.pop()
                self._count -= 1
                if not idle:
                    del self._idle[origin]
            if not _is_readable(found):
                found.deadline = deadline
                return found
            found.close()

    def give_back(self, origin: str, connection: Timed) -> None:
        """Keep for the next request; the answer to the last one must have been read to its end."""
        with self._lock:
            self._idle.setdefault(origin, []).append(connection)
            self._idle.move_to_end(origin)
            self._count += 1
            if self._count <= self._most:
                return
            longest, idle = next(iter(self._idle.items()))
            surplus = idle.pop(0)
            self._count -= 1
            if not idle:
                del self._idle[longest]
        surplus.close()

    def open(self, url: Url, deadline: float) -> Timed:
        """A new connection. Raises HostRefused, socket.gaierror, ssl.SSLError, TimeoutError and other OSErrors."""
        free = self._allow_private or f"{url.host}:{url.port}" == self._trusted
        plain = _connect(url, _addresses(url.host, free, deadline), deadline)
        try:
            peer = plain.getpeername()[0]
            if not (free or is_public(peer)):
                raise HostRefused(f"{url.host} is at {peer}, which is not a public address")
            if url.scheme == "http":
                return plain
            plain.settimeout(seconds_left(deadline))  # bounds the whole handshake, which is one call
            tls = _tls_context().wrap_socket(plain, server_hostname=url.host)
            assert isinstance(tls, _TimedTLS)
            tls.deadline = deadline
            return tls
        except BaseException:
            plain.close()
            raise


def is_public(address: str) -> bool:
    """Whether an IP address is globally routable: not private, loopback, link-local, multicast or reserved, nor one that carries
    such an IPv4 address in an IPv6 one (mapped, NAT64, 6to4)."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        if inner is None:
            return ip in GLOBAL_UNICAST and ip.is_global
        ip = inner
    return ip.is_global and not ip.is_multicast


def _addresses(host: str, free: bool, deadline: float) -> list[dns.Address]:
    literal = _literal(host)
    found = [literal] if literal else dns.RESOLVER.addresses(host, seconds_left(deadline))
    allowed = found if free else [address for address in found if is_public(address[1][0])]
    if not allowed:
        listed = ", ".join(sorted({address[1][0] for address in found}))
        raise HostRefused(f"{host} is at {listed or 'no address'}, which is not a public address")
    return allowed


def _literal(host: str) -> dns.Address | None:
    if ":" in host:
        return socket.AF_INET6, (host, 0, 0, 0)
    return (socket.AF_INET, (host, 0)) if host[-1].isdigit() and host.replace(".", "").isdigit() else None


def _connect(url: Url, addresses: list[dns.Address], deadline: float) -> _Timed:
    """Try one address after the other, each for its share of the time left, so that a dead first one does not use it up."""
    error: OSError = OSError(f"{url.host} has no address")
    for tried, (family, address) in enumerate(addresses):
        plain = _Timed(family, socket.SOCK_STREAM)
        try:
            plain.deadline = deadline
            plain.settimeout(seconds_left(deadline) / (len(addresses) - tried))
            plain.connect((address[0], url.port, *address[2:]))
            return plain
        except OSError as failed:
            plain.close()
            error = failed
    raise error


def _is_readable(connection: Timed) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    """The system's certificates, loaded once a process: it takes tens of milliseconds."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    context.sslsocket_class = _TimedTLS
    return context
