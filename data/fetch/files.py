"""Fetching from files: images in a folder, and images in tars. Both are confined to the source's own folder."""

import re
from pathlib import Path
from urllib.parse import quote, unquote

from data.fetch.http import Fetched
from data.fetch.reasons import Reason

PREFIX = "folder:"
TAR_PREFIX = "webdataset:"
_RANGE = re.compile(r"webdataset:([^!]+)!(\d{1,18})\+(\d{1,18})")


def file_url(relative: str) -> str:
    """The plan's URL of a file in the source folder, which it does not name. ASCII, also where the file's name is not UTF-8."""
    return PREFIX + quote(relative, errors="surrogateescape")


def tar_url(relative: str, offset: int | None, size: int = 0) -> str:
    """The plan's URL of `size` bytes at `offset` of a tar in the source folder; without an offset, of an image that is not there."""
    place = "" if offset is None else f"{offset}+{size}"
    return f"{TAR_PREFIX}{quote(relative, errors='surrogateescape')}!{place}"


class FolderFetcher:
    """Reads files below `root`; links and names that lead outside are refused."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root.resolve()
        self.max_bytes = max_bytes

    def __call__(self, url: str) -> Fetched:
        try:
            path = _inside(self.root, url.removeprefix(PREFIX))
            if path is None:
                return Fetched(reason=Reason.PATH_REFUSED, detail=f"{url} leaves the folder of the source")
            if path.stat().st_size > self.max_bytes:
                return Fetched(reason=Reason.TOO_LARGE)
            return Fetched(path.read_bytes())
        except FileNotFoundError:
            return Fetched(reason=Reason.FILE_MISSING)
        except (OSError, ValueError) as error:
            return Fetched(reason=Reason.FILE_UNREADABLE, detail=str(error))


class TarFetcher:
    """Reads byte ranges of tars below `root`, as `tar_url` names them; nothing is unpacked and no link is followed outside."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root.resolve()
        self.max_bytes = max_bytes

    def __call__(self, url: str) -> Fetched:
        place = _RANGE.fullmatch(url)
        if place is None:
            return Fetched(reason=Reason.FILE_MISSING, detail="the sample holds no image")
        offset, size = int(place[2]), int(place[3])
        try:
            path = _inside(self.root, place[1])
            if path is None:
                return Fetched(reason=Reason.PATH_REFUSED, detail=f"{url} leaves the folder of the source")
            if size > self.max_bytes:
                return Fetched(reason=Reason.TOO_LARGE)
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except FileNotFoundError:
            return Fetched(reason=Reason.FILE_MISSING)
        except (OSError, ValueError) as error:
            return Fetched(reason=Reason.FILE_UNREADABLE, detail=str(error))
        if len(content) < size:
            return Fetched(reason=Reason.FILE_UNREADABLE, detail=f"the tar ends after {len(content)} of {size} bytes")
        return Fetched(content)


def _inside(root: Path, quoted: str) -> Path | None:
    """The file that a quoted relative name leads to, or None when it leads out of `root`."""
    path = (root / unquote(quoted, errors="surrogateescape")).resolve()
    return path if path.is_relative_to(root) else None
