"""What a fetch gives: bytes, or the reason why there are none."""

import errno
import socket
import ssl
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead

from data.fetch.connections import HostRefused
from data.fetch.reasons import Reason
from data.fetch.response import BodyTooLarge

OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)  # our own trouble: it says nothing about a URL
FAILURES = (HTTPException, OSError, HostRefused, BodyTooLarge)


@dataclass(frozen=True)
class Fetched:
    """Bytes, or a reason; `detail` is free text for the log and never enters the ledger. `attempts` is 0 where nobody was asked."""

    content: bytes | None = None
    reason: Reason | None = None
    http_status: int | None = None
    attempts: int = 1
    detail: str = ""


def reason_of_status(status: int) -> Reason:
    if status == 429:
        return Reason.HTTP_429
    if 400 <= status < 500:
        return Reason.HTTP_4XX
    return Reason.HTTP_5XX if 500 <= status < 600 else Reason.HTTP_OTHER


def failed(error: Exception, status: int | None = None) -> Fetched:
    """The reason behind one of `FAILURES`. Raises `error` again where it is our own trouble."""
    if isinstance(error, OSError) and error.errno in OUT_OF_FILES:
        raise error
    reason, detail = _reason_of(error), f"{type(error).__name__}: {error}"[:300]
    return Fetched(reason=reason, http_status=status, attempts=0 if reason == Reason.HOST_REFUSED else 1, detail=detail)


def _reason_of(error: Exception) -> Reason:
    """The first that fits: several of these are kinds of OSError, and RemoteDisconnected is a ConnectionError too."""
    for kind, reason in (
        (HostRefused, Reason.HOST_REFUSED),
        (BodyTooLarge, Reason.TOO_LARGE),
        (IncompleteRead, Reason.TRUNCATED),
        (socket.gaierror, Reason.DNS),
        (TimeoutError, Reason.TIMEOUT),
        (ssl.SSLError, Reason.TLS),
        (OSError, Reason.CONNECTION),
    ):
        if isinstance(error, kind):
            return reason
    return Reason.NOT_HTTP
