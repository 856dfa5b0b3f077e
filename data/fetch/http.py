"""Our fetch: one URL to bytes, within limits, from public hosts only. URLs and servers are hostile until proven otherwise."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException
from typing import NamedTuple

from data.fetch.connections import Connections, Timed, seconds_left
from data.fetch.dns import is_final
from data.fetch.failing import FailingHosts, failure_of
from data.fetch.fetched import FAILURES, Fetched, failed, reason_of_status
from data.fetch.limits import HostHeld, HostLimits
from data.fetch.reasons import TRANSIENT, Reason
from data.fetch.response import Response
from data.fetch.robots import RobotsTxt
from data.fetch.robots_tag import agent_token, is_opted_out
from data.fetch.settings import FetchSettings
from data.fetch.urls import BadUrl, Url, parse_url, redirected

FIRST_PAUSE = 0.5  # seconds before the second attempt, doubled for each further one
NEVER = float("inf")  # for an answer that is remembered: another attempt would not even ask
REDIRECTS = (301, 302, 303, 307, 308)
STATUSES_OF_AN_IMAGE = (200, 203)
ROBOTS_BYTES, ROBOTS_REDIRECTS = 5_000_000, 5


class _Clock:
    """How much time one fetch has left. Waiting for a host's place, or because a host asked for it, does not count."""

    def __init__(self, settings: FetchSettings) -> None:
        self.deadline = time.monotonic() + settings.deadline
        self.patience = settings.max_wait  # seconds that are still waited because hosts ask for it

    def excuse(self, since: float) -> None:
        self.deadline += time.monotonic() - since


class HttpFetcher:
    """Fetches over connections that are kept open; safe to share between threads.

    `trusted` names one `host:port` that may be private and is not limited: the loopback server that a source of ours started.
    `rewrite` is applied to every URL first. `limits` holds, for all workers together, what each host is asked at most.
    """

    def __init__(
        self,
        settings: FetchSettings,
        trusted: str | None = None,
        rewrite: Callable[[str], str] | None = None,
        limits: HostLimits | None = None,
    ) -> None:
        self.settings, self._trusted, self._rewrite, self._limits = settings, trusted, rewrite, limits
        self._failing = FailingHosts(settings.host_failures)
        self._connections = Connections(settings.allow_private_hosts, trusted, keep=2 * settings.threads)
        agent = settings.user_agent + (f" (+{settings.contact})" if settings.contact else "")
        self._agent = agent_token(settings.user_agent)
        self._headers = f"User-Agent: {agent}\r\nAccept: image/*,*/*;q=0.5\r\nAccept-Encoding: identity\r\n\r\n"
        self._robots: RobotsTxt | None = None
        if settings.respect_robots_txt:
            asking = settings.model_copy(
                update={
                    "attempts": 1, "max_bytes": ROBOTS_BYTES, "max_redirects": ROBOTS_REDIRECTS, "respect_robots_tag": False,
                    "respect_robots_txt": False, "host_failures": 0,
                }
            )  # fmt: skip
            self._robots = RobotsTxt(HttpFetcher(asking, trusted, limits=limits), self._agent)

    def __call__(self, url: str) -> Fetched:
        """Try until it works, until trying again can't help, or until the attempts or the deadline are used up.

        Raises OSError when this process or machine is out of file descriptors, and whatever is a mistake of ours.
        """
        clock = _Clock(self.settings)
        attempt, asked = 1, 0
        while True:
            found, wait = self._follow(self._rewrite(url) if self._rewrite else url, clock)
            asked += found.attempts
            if (
                found.reason not in TRANSIENT
                or attempt == self.settings.attempts
                or not self._pause(url, attempt, wait, clock)
            ):
                return found if asked == found.attempts else replace(found, attempts=asked)
            attempt += 1

    def _pause(self, url: str, attempt: int, wait: float, clock: _Clock) -> bool:
        """Sleep before the next attempt: as long as the host asked, else ever longer, unlike for every URL. False: no time left."""
        pause = FIRST_PAUSE * 2 ** (attempt - 1) * random.Random(f"{url}/{attempt}").uniform(0.5, 1.0)
        start = time.monotonic()
        if wait > 0:
            if wait > clock.patience:
                return False
            clock.patience -= wait
            time.sleep(max(wait, pause))
            clock.excuse(start)
            return True
        if start + pause >= clock.deadline:
            return False
        time.sleep(pause)
        return True

    def _follow(self, text: str, clock: _Clock) -> tuple[Fetched, float]:
        """One attempt, redirects included: what came of it, and the seconds that must pass before another one."""
        status = None
        try:
            url = parse_url(text)
            for _ in range(self.settings.max_redirects + 1):
                step = self._step(url, clock)
                if not isinstance(step, _Redirect):
                    found, wait = step
                    return (found if found.attempts or status is None else replace(found, attempts=1)), wait
                status = step.status
                url = redirected(url, step.location)
            found, wait = Fetched(reason=Reason.TOO_MANY_REDIRECTS, http_status=status), 0.0
        except BadUrl as error:
            found, wait = Fetched(reason=Reason.BAD_URL, http_status=status, detail=str(error)[:300]), 0.0
        except HostHeld as error:
            found, wait = Fetched(reason=Reason.HTTP_429, http_status=status, detail=str(error)), NEVER
        return replace(found, attempts=0 if status is None else 1), wait

    def _step(self, url: Url, clock: _Clock) -> "_Redirect | tuple[Fetched, float]":
        """One request, unless robots.txt forbids it or the host is one that only fails."""
        if self._is_trusted(url):
            return self._hop(url, clock.deadline)
        refusal = self._failing.answer(url.host) or self._refusal(url, clock)
        if refusal is not None:
            return refusal, NEVER
        with self._place(url, clock):
            refusal = self._failing.answer(url.host)  # what came out while this row waited for its place
            if refusal is not None:
                return refusal, NEVER
            step = self._hop(url, clock.deadline)
            self._failing.note(url.host, None if isinstance(step, _Redirect) else failure_of(*step))
        return step

    def _refusal(self, url: Url, clock: _Clock) -> Fetched | None:
        if self._robots is None:
            return None
        start = time.monotonic()
        refusal = self._robots.refusal(url)
        clock.excuse(start)  # the file is asked for once for many images
        return refusal

    @contextmanager
    def _place(self, url: Url, clock: _Clock) -> Iterator[None]:
        if self._limits is None:
            yield
            return
        start = time.monotonic()
        with self._limits.place(url.host, clock.patience) as held:
            clock.patience -= held
            clock.excuse(start)
            yield

    def _is_trusted(self, url: Url) -> bool:
        return self._trusted is not None and f"{url.host}:{url.port}" == self._trusted

    def _hop(self, url: Url, deadline: float) -> "_Redirect | tuple[Fetched, float]":
        """One request and its answer."""
        try:
            connection, response = self._ask(url, deadline)
        except FAILURES as error:
            return failed(error), NEVER if is_final(error) else 0.0
        reusable = False
        try:
            location = response.head.get("location")
            if response.status in REDIRECTS and location:
                return _Redirect(response.status, location)
            found, wait = self._read(response), response.retry_after()
            reusable = response.is_at_its_end()
        except FAILURES as error:
            return failed(error, response.status), 0.0
        finally:
            response.close()
            if reusable:
                self._connections.give_back(url.origin, connection)
            else:  # what is left of an unread body would be taken for the next answer
                connection.close()
        if wait > 0 and self._limits is not None and not self._is_trusted(url):
            self._limits.hold(url.host, wait)
        return found, wait

    def _ask(self, url: Url, deadline: float) -> tuple[Timed, Response]:
        kept = self._connections.take(url.origin, deadline)
        if kept is not None:
            try:
                return kept, self._send(kept, url, deadline)
            except TimeoutError:
                raise
            except (HTTPException, OSError):
                pass  # the server closed it between two requests, which says nothing about this one
        fresh = self._connections.open(url, deadline)
        return fresh, self._send(fresh, url, deadline)

    def _send(self, connection: Timed, url: Url, deadline: float) -> Response:
        try:
            connection.settimeout(seconds_left(deadline))
            connection.sendall(f"GET {url.target} HTTP/1.1\r\nHost: {url.authority}\r\n{self._headers}".encode("ascii"))
            response = Response(connection)
            response.begin()
            return response
        except BaseException:
            connection.close()
            raise

    def _read(self, response: Response) -> Fetched:
        status = response.status
        if status not in STATUSES_OF_AN_IMAGE:
            if response.length == 0:
                response.read()  # takes no time, and the connection can be used again
            return Fetched(reason=reason_of_status(status), http_status=status)
        if self.settings.respect_robots_tag and is_opted_out(response.head.get_all("x-robots-tag"), self._agent):
            return Fetched(reason=Reason.OPTED_OUT, http_status=status)
        return Fetched(response.body(self.settings.max_bytes), http_status=status)


class _Redirect(NamedTuple):
    status: int
    location: str
