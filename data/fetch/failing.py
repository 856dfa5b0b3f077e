"""Hosts that only fail: after so many failures in a row a host's rows are answered at once, for a minute at a time.

Waiting for a host's place, or because the host asked for it, is not charged to a row's deadline; a list with thousands of rows at a
host that stalls would hold up everybody else's. A failure is no answer, or one that asks to wait; any other answer, a 404 too,
takes the failures back. Earlier answers must be used up first, up to `CREDIT` times the limit: a host that has served thousands of
images and is away for seconds costs the rows that were asked meanwhile, not a whole shard.
"""

import threading
import time
from collections import OrderedDict

from data.fetch.fetched import Fetched
from data.fetch.reasons import Reason

FAILING = frozenset({Reason.TIMEOUT, Reason.CONNECTION, Reason.DNS, Reason.HTTP_429})
REST = 60.0  # seconds; then the next rows ask again, and one more failure is enough
CREDIT = 10
MOST_HOSTS = 20_000


def failure_of(found: Fetched, wait: float) -> Fetched | None:
    """What the host failed with, if it did; `wait` are the seconds that it asked for."""
    return found if found.reason in FAILING or wait > 0 else None


class _Host:
    balance = 0  # earlier answers, or as a negative number failures in a row
    until = 0.0  # not to be asked before, on the monotonic clock
    last: Fetched | None = None


class FailingHosts:
    """One process's memory of how its hosts answer; `after` failures in a row are too many, 0: never. Shared by threads."""

    def __init__(self, after: int) -> None:
        self._after = after
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, host: str) -> Fetched | None:
        """What to say instead of asking; None where the host is to be asked."""
        known = self._hosts.get(host)
        return known.last if known is not None and known.last is not None and time.monotonic() < known.until else None

    def note(self, host: str, failure: Fetched | None) -> None:
        """Count one request; `failure` is what it came to, None where the host answered."""
        if not self._after:
            return
        with self._lock:
            known = self._hosts.get(host) or self._hosts.setdefault(host, _Host())
            self._hosts.move_to_end(host)
            if len(self._hosts) > MOST_HOSTS:
                self._hosts.popitem(last=False)
            if failure is None:
                known.balance, known.last = min(max(known.balance, 0) + 1, CREDIT * self._after), None
                return
            known.balance -= 1
            if known.balance <= -self._after:
                detail = f"{host} kept failing and is left alone for {REST:.0f} s: {failure.detail or failure.reason}"
                known.last = Fetched(reason=failure.reason, attempts=0, detail=detail[:300])
                known.until = time.monotonic() + REST
