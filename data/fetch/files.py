"""Fetching from a folder: the `file:` half of our fetch, confined to the source's own folder."""

from pathlib import Path
from urllib.parse import quote, unquote

from data.fetch.http import Fetched
from data.fetch.reasons import Reason

PREFIX = "folder:"


def file_url(relative: str) -> str:
    """The plan's URL of a file in the source folder, which it does not name. ASCII, also where the file's name is not UTF-8."""
    return PREFIX + quote(relative, errors="surrogateescape")


class FolderFetcher:
    """Reads files below `root`; links and names that lead outside are refused."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root.resolve()
        self.max_bytes = max_bytes

    def __call__(self, url: str) -> Fetched:
        try:
            path = (self.root / unquote(url.removeprefix(PREFIX), errors="surrogateescape")).resolve()
            if not path.is_relative_to(self.root):
                return Fetched(reason=Reason.PATH_REFUSED, detail=f"{url} leaves the folder of the source")
            if path.stat().st_size > self.max_bytes:
                return Fetched(reason=Reason.TOO_LARGE)
            return Fetched(path.read_bytes())
        except FileNotFoundError:
            return Fetched(reason=Reason.FILE_MISSING)
        except (OSError, ValueError) as error:
            return Fetched(reason=Reason.FILE_UNREADABLE, detail=str(error))
