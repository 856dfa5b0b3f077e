"""The configured source behind one face: facts that identify it, its candidates, and how a worker fetches from it."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

from data.fetch.files import FolderFetcher, TarFetcher
from data.fetch.http import Fetched, HttpFetcher
from data.fetch.limits import HostLimits
from data.fetch.settings import FetchSettings
from data.sources.candidates import Candidate, Served
from data.sources.coco import CocoSource
from data.sources.exclude import Exclusions, read_exclusions
from data.sources.folder import FolderSource
from data.sources.scenes import PREFIX, ScenesSource
from data.sources.settings import SourceChoice
from data.sources.table import TableSource
from data.sources.webdataset import WebdatasetSource


class Source(Protocol):
    """Where candidates come from. Bad settings and unreadable inputs are a UserError from any of the methods."""

    @property
    def notes(self) -> Counter[str]:
        """What could not become a candidate, counted while `candidates` runs (sentence -> how often)."""

    def facts(self) -> dict[str, Any]:
        """JSON that identifies the content: per input file its name, bytes and sha256; no absolute path."""

    def candidates(self) -> Iterator[Candidate]:
        """Every candidate in the source's fixed order, streaming."""

    def serving(self) -> AbstractContextManager[Served]:
        """Keep the source reachable while the context lasts; yields what `fetcher_for` needs in a worker."""


def open_source(settings: SourceChoice, seed: int) -> Source:
    """The one source that `settings` name, behind its exclusion lists."""
    return _Excluding(_configured(settings, seed), read_exclusions(settings.exclude))


def _configured(settings: SourceChoice, seed: int) -> Source:
    if settings.scenes is not None:
        return ScenesSource(settings.scenes, seed)
    if settings.table is not None:
        return TableSource(settings.table)
    if settings.coco is not None:
        return CocoSource(settings.coco)
    if settings.webdataset is not None:
        return WebdatasetSource(settings.webdataset)
    assert settings.folder is not None
    return FolderSource(settings.folder)


class _Excluding:
    """A source whose candidates say which exclusion list names them; the lists' content belongs to its facts."""

    def __init__(self, source: Source, exclusions: Exclusions) -> None:
        self.source, self.exclusions = source, exclusions

    @property
    def notes(self) -> Counter[str]:
        return self.source.notes

    def facts(self) -> dict[str, Any]:
        return self.source.facts() | {"exclusion lists": self.exclusions.facts}

    def candidates(self) -> Iterator[Candidate]:
        if not (self.exclusions.urls or self.exclusions.domains):
            yield from self.source.candidates()
            return
        for candidate in self.source.candidates():
            # An image in a tar has the address it was once fetched from among its extras.
            once = (candidate.extra or {}).get("url")
            for url in (candidate.url, once):
                reason = self.exclusions.url_reason(url) if isinstance(url, str) else None
                if reason is not None:
                    candidate = replace(candidate, excluded=str(reason))
                    break
            yield candidate

    def serving(self) -> AbstractContextManager[Served]:
        return self.source.serving()


def fetcher_for(served: Served, settings: FetchSettings, limits: HostLimits | None) -> Callable[[str], Fetched]:
    """The fetch function for a source's candidates, from what its `serving` yielded. Shared by the threads of a worker."""
    if served.kind == "web":
        return HttpFetcher(settings, limits=limits)
    if served.root is not None:
        return (FolderFetcher if served.kind == "folder" else TarFetcher)(served.root, settings.max_bytes)
    address = served.address
    assert address is not None, f"{served} says neither where nor at which address"
    return HttpFetcher(
        settings, trusted=address, rewrite=lambda url: url.replace(PREFIX, f"http://{address}/", 1), limits=limits
    )
