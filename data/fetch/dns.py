"""Host names to addresses within a deadline, and asking once for what many rows need.

`getaddrinfo` knows no timeout, so a few threads of the process do the asking. Answers are kept for minutes, and so is "no such
name": an overrun name server is the commonest way in which a crawl fails, and a failure that may pass is asked for again.
"""

import os
import queue
import socket
import threading
import time
from concurrent.futures import Future

THREADS = 16
KEEP, KEEP_UNKNOWN = 300.0, 60.0  # seconds; getaddrinfo does not tell the records' own time to live
MOST_NAMES, MOST_ADDRESSES = 20_000, 8
NO_SUCH_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


Address = tuple[int, tuple]  # family, socket address with port 0


def is_final(error: Exception) -> bool:
    """Whether the error says that there is no such name, which is remembered: asking again soon gives the same answer."""
    return isinstance(error, socket.gaierror) and error.errno in NO_SUCH_NAME


class Resolver:
    """Shared by all threads of a process; its own threads start when they are needed and die with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, list[Address] | socket.gaierror]] = {}
        self._asked: dict[str, Future[list[Address]]] = {}
        self._queue: queue.SimpleQueue[tuple[str, Future[list[Address]]]] = queue.SimpleQueue()
        self._threads = 0

    def addresses(self, host: str, timeout: float) -> list[Address]:
        """At most eight, in the system's order. `timeout` in seconds. Raises socket.gaierror, also when time is up."""
        with self._lock:
            known = self._known.get(host)
            if known is not None and known[0] > time.monotonic():
                if isinstance(known[1], socket.gaierror):
                    raise socket.gaierror(*known[1].args)
                return known[1]
            asked = self._asked.get(host) or self._ask(host)
        try:
            return asked.result(timeout)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, f"the name server did not answer within {timeout:.1f} s") from None
        except socket.gaierror as error:
            raise socket.gaierror(*error.args) from None  # the one error is shared by all who wait

    def _ask(self, host: str) -> "Future[list[Address]]":
        asked = self._asked[host] = Future()
        self._queue.put((host, asked))
        if self._threads < min(THREADS, len(self._asked)):
            self._threads += 1
            threading.Thread(target=self._work, name="resolver", daemon=True).start()
        return asked

    def _work(self) -> None:
        while True:
            host, asked = self._queue.get()
            try:
                # As bytes: text would go through Python's codec of the older IDNA 2003.
                found = socket.getaddrinfo(host.encode("ascii"), 0, type=socket.SOCK_STREAM)
                addresses = [(int(family), tuple(address)) for family, _, _, _, address in found[:MOST_ADDRESSES]]
            except Exception as error:
                self._keep(host, error if isinstance(error, socket.gaierror) else None)
                asked.set_exception(error)
            else:
                self._keep(host, addresses)
                asked.set_result(addresses)

    def _keep(self, host: str, answer: "list[Address] | socket.gaierror | None") -> None:
        with self._lock:
            del self._asked[host]
            self._known.pop(host, None)
            if isinstance(answer, list):
                self._known[host] = (time.monotonic() + KEEP, answer)
            elif answer is not None and is_final(answer):
                self._known[host] = (time.monotonic() + KEEP_UNKNOWN, answer)
            if len(self._known) > MOST_NAMES:
                del self._known[next(iter(self._known))]


RESOLVER = Resolver()


def _after_fork() -> None:
    RESOLVER.__init__()  # type: ignore[misc]  # a child has none of its parent's threads, and maybe a lock that one of them held


os.register_at_fork(after_in_child=_after_fork)
