"""Exclusion lists: what must never be stored, by URL, domain, sha256 and perceptual hash. One entry a line.

A line that starts with `#`, and what follows ` #`, is a comment. A broken line is refused: an opt-out that is not understood must not
be lost in silence.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.fetch.reasons import Reason
from data.pipeline.artifacts import file_facts
from data.pipeline.errors import UserError
from data.sources.canonical import ascii_host, canonical_url, host_of
from data.sources.facts import cannot_read
from data.sources.settings import ExcludeSettings

T = TypeVar("T")
_COMMENT = re.compile(r"(^|\s)#.*")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True)
class Exclusions:
    """The lists, parsed. `facts`: per list its file's name, bytes and sha256, and the number of different entries."""

    urls: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()
    phash: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    facts: dict[str, Any] = field(default_factory=dict)

    def url_reason(self, url: str) -> Reason | None:
        """Why this URL must not be fetched, or None. Canonical URLs are compared, http and https alike."""
        if self.urls and _address(url) in self.urls:
            return Reason.EXCLUDED_URL
        return Reason.EXCLUDED_DOMAIN if self.domains and self._names_domain(host_of(url)) else None

    def _names_domain(self, host: str) -> bool:
        while host:
            if host in self.domains:
                return True
            host = host.partition(".")[2]
        return False


def read_exclusions(settings: ExcludeSettings) -> Exclusions:
    """Parse the configured lists. Raises UserError naming file and line of what cannot be read or understood."""
    facts: dict[str, dict[str, Any]] = {}
    for name in ("urls", "domains", "sha256", "phash"):
        path = getattr(settings, name)
        if path is not None:
            try:
                facts[name] = {"name": Path(path).name, **file_facts(Path(path))}
            except OSError as error:
                raise cannot_read(f"dataset.exclude.{name}", Path(path), error) from None
    found = Exclusions(
        urls=frozenset(_entries(settings.urls, "urls", "an http or https URL", url_in)),
        domains=frozenset(_entries(settings.domains, "domains", "a domain such as example.com", domain_in)),
        sha256=frozenset(_entries(settings.sha256, "sha256", "64 hex digits", sha256_in)),
        phash=np.array(sorted(set(_entries(settings.phash, "phash", "16 hex digits", phash_in))), np.uint64),
        facts=facts,
    )
    for name in facts:
        facts[name]["entries"] = len(getattr(found, name))
    return found


def _entries(path: str | None, name: str, wanted: str, parse: Callable[[str], T | None]) -> Iterator[T]:
    if path is None:
        return
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                entry = _COMMENT.sub("", text).strip()
                if not entry:
                    continue
                found = parse(entry)
                if found is None:
                    raise UserError(
                        f"dataset.exclude.{name}: {path}, line {number}: {entry[:100]!r} is not {wanted}; mend the line"
                    )
                yield found
    except (OSError, UnicodeError) as error:
        raise cannot_read(f"dataset.exclude.{name}", Path(path), error) from None


def _address(url: str) -> str:
    """The canonical URL without its scheme."""
    return canonical_url(url.strip()).partition("://")[2]


def url_in(entry: str) -> str | None:
    return _address(entry) if host_of(entry) else None


def domain_in(entry: str) -> str | None:
    """`example.com`, also written `www.example.com`, `*.example.com` or `.example.com`: each names the domain and all below it."""
    host = ascii_host(entry.rstrip(".")).removeprefix("*").removeprefix(".").removeprefix("www.")
    return host if host and all(_LABEL.fullmatch(label) for label in host.split(".")) else None


def sha256_in(entry: str) -> str | None:
    return entry.lower() if re.fullmatch(r"[0-9a-fA-F]{64}", entry) else None


def phash_in(entry: str) -> int | None:
    return int(entry, 16) if re.fullmatch(r"[0-9a-fA-F]{16}", entry) else None
