"""The breaker: stops downloading when hardly anything succeeds any more, and says why.

Hours of a crawl are lost when a resolver is overrun, a network is cut or a library broke, and every row fails the same way.
"""

import threading
from collections import Counter, deque

from data.fetch.reasons import MEANING, Reason
from data.pipeline.errors import UserError

# For every reason that can dominate a run. What was decided before anything was asked for does not count here (data.dataset.build).
ADVICE: dict[Reason, str] = {
    Reason.EXCLUDED_SHA256: "check that dataset.exclude.sha256 is the list that you meant",
    Reason.EXCLUDED_PHASH: "check dataset.exclude.phash, and lower dataset.exclude.phash_distance",
    Reason.BAD_URL: "check that the source's URL column (dataset.table.url) holds http and https URLs",
    Reason.HOST_REFUSED: "if these hosts are your own, set dataset.fetch.allow_private_hosts=true",
    Reason.DNS: "run a caching name server on this machine and check /etc/resolv.conf; lower dataset.fetch.threads or cluster.workers",
    Reason.CONNECTION: "check that this machine reaches the internet",
    Reason.TIMEOUT: "check the network, lower dataset.fetch.threads or raise dataset.fetch.deadline",
    Reason.TLS: "check this machine's clock and certificates",
    Reason.NOT_HTTP: "check that the URLs name web servers: their ports, and whether a proxy or login page of your network answers",
    Reason.HTTP_4XX: "open a few of the URLs in a browser: if they work there, this machine's address or dataset.fetch.user_agent is "
    "blocked, so set dataset.fetch.contact and lower dataset.fetch.per_host; if not, the list is too old, use a newer one",
    Reason.HTTP_429: "lower dataset.fetch.per_host or set dataset.fetch.per_host_rate",
    Reason.HTTP_5XX: "wait: the servers are down or overrun, most often one host that all URLs name; set dataset.fetch.per_host_rate",
    Reason.HTTP_OTHER: "open a few of the URLs in a browser: they lead to no image",
    Reason.TOO_MANY_REDIRECTS: "open a few of the URLs in a browser: most often they lead to a login page",
    Reason.TOO_LARGE: "raise dataset.fetch.max_bytes",
    Reason.TRUNCATED: "check the network and its proxies: bodies are cut off",
    Reason.OPTED_OUT: "these owners ask not to be used, so take a list of other hosts; see docs/data.md before you set "
    "dataset.fetch.respect_robots_tag=false",
    Reason.ROBOTS_TXT: "these hosts disallow the crawler, so take a list of other hosts; what robots.txt says of it stands there",
    Reason.ROBOTS_UNREACHABLE: "wait: hosts whose robots.txt cannot be read are not asked; check that this machine reaches them, or set "
    "dataset.fetch.respect_robots_txt=false",
    Reason.HASH_MISMATCH: "check that the hash column is one of the original bytes, or set dataset.fetch.verify_hash=false",
    Reason.FILE_MISSING: "check that the images lie where the source's list says, below the folder that the config names",
    Reason.FILE_UNREADABLE: "check the rights of the images' files, and that their disk and the tars are whole",
    Reason.PATH_REFUSED: "names that lead out of the source's folder, also by links, are refused: name the folder above",
    Reason.NOT_AN_IMAGE: "check that the source's URL column names images, not pages",
    Reason.DECODE_ERROR: "check that a few of the files open elsewhere: if they do, this Python's OpenCV or Pillow is broken, so run "
    "`make setup`; if not, the source is damaged",
    Reason.DECODING_BOMB: "these files are made to do harm: take another list",
    Reason.UNSUPPORTED_MODE: "convert the source's images to RGB first",
    Reason.ANIMATED: "set dataset.image.animated=first_frame to keep first frames",
    Reason.TOO_MANY_PIXELS: "raise dataset.image.max_pixels",
    Reason.TOO_SMALL: "lower dataset.image.min_side",
    Reason.TOO_LARGE_SIDE: "set dataset.image.format=png, or another dataset.image.mode than no",
}
NO_ADVICE = frozenset({Reason.NO_CAPTION, Reason.EXCLUDED_URL, Reason.EXCLUDED_DOMAIN})  # decided without asking


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
        return (
            f"stopped: only {stored} of the last {self.window} downloads succeeded ({stored / self.window:.1%}; at least "
            f"{self.min_success:.1%} must, dataset.fetch.breaker_min_success); {count} of the {failed} failures ({count / failed:.0%}) "
            f"are {worst}: {MEANING[worst]}. What to do: {ADVICE[worst]}. What is stored stays, and the same command goes on from there"
        )
