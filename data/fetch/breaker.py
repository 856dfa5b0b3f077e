"""The breaker: stops downloading when hardly anything succeeds any more, and says why.

Hours of a crawl are lost when a resolver is overrun, a network is cut or a library broke, and every row fails the same way.
"""

import threading
from collections import Counter, deque

from data.errors import UserError
from data.fetch.reasons import MEANING, Reason

ADVICE: dict[Reason, str] = {
    Reason.DNS: "lower dataset.fetch.threads or the number of workers, or run a caching name server on this machine",
    Reason.CONNECTION: "check that this machine reaches the internet",
    Reason.TIMEOUT: "check the network, lower dataset.fetch.threads or raise dataset.fetch.deadline",
    Reason.TLS: "check this machine's clock and certificates",
    Reason.HTTP_429: "lower dataset.fetch.per_host or set dataset.fetch.per_host_rate",
    Reason.HTTP_4XX: "check that the source's URLs are still served",
    Reason.HASH_MISMATCH: "check that the hash column is one of the original bytes, or set dataset.fetch.verify_hash=false",
    Reason.HOST_REFUSED: "if these hosts are your own, set dataset.fetch.allow_private_hosts=true",
    Reason.BAD_URL: "check that the source's URL column holds http and https URLs",
    Reason.NOT_AN_IMAGE: "check that the source's URL column names images, not pages",
    Reason.TOO_SMALL: "check dataset.image.min_side",
}


class SuccessCollapsed(UserError):
    """Fewer downloads succeeded than `breaker_min_success` allows."""


class Breaker:
    """Watches the last `window` outcomes; shared by threads. `min_success` in [0, 1) is the least share that must succeed."""

    def __init__(self, window: int, min_success: float) -> None:
        if window < 1 or not 0 <= min_success < 1:
            raise ValueError(f"a breaker needs window >= 1 and min_success in [0, 1), got {window} and {min_success}")
        self.window, self.min_success = window, min_success
        self._last: deque[Reason | None] = deque(maxlen=window)
        self._counts: Counter[Reason | None] = Counter()
        self._lock = threading.Lock()

    def add(self, reason: Reason | None) -> None:
        """Count one outcome (None: stored). Raises SuccessCollapsed once a full window holds too few stored ones."""
        with self._lock:
            if len(self._last) == self.window:
                self._counts[self._last[0]] -= 1
            self._last.append(reason)
            self._counts[reason] += 1
            if len(self._last) == self.window and self._counts[None] < self.min_success * self.window:
                raise SuccessCollapsed(self._message())

    def _message(self) -> str:
        stored = self._counts[None]
        failed = self.window - stored
        worst, count = max(
            ((reason, n) for reason, n in self._counts.items() if reason is not None),
            key=lambda item: (item[1], item[0]),
        )
        advice = ADVICE.get(worst, f"see `python -m data show --reason {worst}` and `python -m data funnel`")
        return (
            f"stopped: only {stored} of the last {self.window} downloads succeeded ({stored / self.window:.1%}; at least "
            f"{self.min_success:.1%} must, dataset.fetch.breaker_min_success); {count} of the {failed} failures ({count / failed:.0%}) "
            f"are {worst}: {MEANING[worst]}. What to do: {advice}; what is stored stays, and the same command goes on from there"
        )
