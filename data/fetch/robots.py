"""robots.txt as RFC 9309 has it: the longest matching rule decides, `*` and `$` are wildcards, our own group goes before `*`.

(`urllib.robotparser` takes the first rule instead of the longest and knows no wildcards, so that `Disallow: /*.jpg$` would be
passed over.) One file is fetched per origin and process and kept for a day; one that cannot be read forbids everything for a minute.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import quote

from data.fetch.fetched import Fetched
from data.fetch.reasons import Reason
from data.fetch.urls import PATH_SAFE, QUERY_SAFE, Url

MOST_BYTES = 500 * 1024  # what RFC 9309 asks a crawler to read at least; the rest is not looked at
MOST_ORIGINS = 2000
KEEP, KEEP_UNREACHABLE = 86_400.0, 60.0  # seconds
# What tells of the host and not of its robots.txt: the image could not be had either.
OF_THE_HOST = (Reason.DNS, Reason.HOST_REFUSED, Reason.CONNECTION, Reason.TLS, Reason.TIMEOUT)

Rules = list[tuple[bool, str]]  # allowed, pattern


class RobotsTxt:
    """What the hosts' robots.txt say to the agent called `agent` (lower case); `fetch` gets a URL. Safe to share between threads."""

    def __init__(self, fetch: Callable[[str], Fetched], agent: str) -> None:
        self._fetch, self._agent = fetch, agent

    def refusal(self, url: Url) -> Fetched | None:
        """Why the URL must not be fetched; None where it may be."""
        entry = _entry(self._agent, url.origin)
        with entry.lock:  # the first thread asks, the others wait for its answer
            if entry.until < time.monotonic():
                entry.verdict = self._read(url.origin)
                entry.until = time.monotonic() + (KEEP if isinstance(entry.verdict, list) else KEEP_UNREACHABLE)
            verdict = entry.verdict
        if isinstance(verdict, list):
            if is_allowed(verdict, url.target):
                return None
            return Fetched(reason=Reason.ROBOTS_TXT, attempts=0, detail=f"robots.txt of {url.origin}")
        return verdict

    def _read(self, origin: str) -> "Rules | Fetched":
        found = self._fetch(origin + "/robots.txt")
        if found.content is not None:
            return rules_for(found.content[:MOST_BYTES], self._agent)
        if found.reason in (Reason.HTTP_4XX, Reason.HTTP_OTHER, Reason.TOO_MANY_REDIRECTS, Reason.BAD_URL):
            return []  # there is none
        said = found.detail or f"{found.reason}, status {found.http_status}"
        reason = found.reason if found.reason in OF_THE_HOST else Reason.ROBOTS_UNREACHABLE
        return Fetched(reason=reason, attempts=0, detail=f"robots.txt of {origin}: {said}"[:300])


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.until = float("-inf")
        self.verdict: Rules | Fetched = []


_entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
_entries_lock = threading.Lock()


def _entry(agent: str, origin: str) -> _Entry:
    """The process's entry for an origin: shards come and go, and a host should be asked once."""
    with _entries_lock:
        entry = _entries.setdefault((agent, origin), _Entry())
        _entries.move_to_end((agent, origin))
        if len(_entries) > MOST_ORIGINS:
            _entries.popitem(last=False)
        return entry


def rules_for(content: bytes, agent: str) -> Rules:
    """The rules of the groups that name `agent`, or of those for `*` where none does."""
    ours: Rules = []
    everybodys: Rules = []
    named = False
    names: set[str] = set()
    in_names = False
    for line in content.decode("utf-8", "replace").removeprefix("\ufeff").splitlines():
        key, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        key = key.lower()
        if key == "user-agent":
            names = names if in_names else set()
            names.add(value.split("/")[0].strip().lower())
            in_names = True
            named = named or agent in names
        elif key in ("allow", "disallow"):
            in_names = False
            for rules, name in ((ours, agent), (everybodys, "*")):
                if name in names and value:
                    rules.append((key == "allow", _normal(value)))
    return ours if named else everybodys


def is_allowed(rules: Rules, target: str) -> bool:
    """Whether path and query may be fetched: the longest pattern decides, `allow` where two are as long."""
    path = _normal(target)
    longest, allowed = -1, True
    for allow, pattern in rules:
        if (len(pattern) > longest or (len(pattern) == longest and allow)) and _matches(pattern, path):
            longest, allowed = len(pattern), allow
    return allowed


def _normal(text: str) -> str:
    """Both sides escaped alike, so that `/é` and `/%c3%a9` are one."""
    escaped = quote(text, safe=PATH_SAFE + QUERY_SAFE + "$*", errors="surrogateescape")
    head, *rest = escaped.split("%")
    return head + "".join("%" + piece[:2].upper() + piece[2:] for piece in rest)


def _matches(pattern: str, path: str) -> bool:
    """Whether the pattern matches a beginning of the path, or all of it where it ends in `$`. Linear: no backtracking."""
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not rest:
        return not anchored or at == len(path)
    last = rest.pop() if anchored else ""
    for piece in rest:
        at = path.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return len(path) - len(last) >= at and path.endswith(last)
