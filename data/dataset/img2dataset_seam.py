"""The one place that leans on img2dataset's internals: its `Downloader.download_shard`, one shard a call.

img2dataset brings the pipelined download of a shard: a thread pool, back-pressure, decode as bodies arrive. What it does with
errors, limits, keys and files is replaced through its own seams:

- its fetch is the module global `img2dataset.downloader.download_image_with_retry`, swapped for ours while a shard runs
  (hence one shard at a time in a process);
- its `resizer` and `sample_writer_class` are injected. It swallows exceptions raised in either (a full disk becomes a row that is
  missing from a shard that "succeeded"), so both remember their first error and it is raised after the shard;
- status, HTTP code and typed reason travel in a side table keyed by row.

`tests/data/dataset/test_img2dataset_seam.py` pins each of these facts against the installed version.
"""

import hashlib
import inspect
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.dataset.breaker import Breaker
from data.fetch.http import Fetched
from data.fetch.reasons import Reason
from data.images.resize import Resized
from data.pipeline.errors import UserError

SHA256_DIGITS = 64
OTHER_HASHES = {
    32: "md5",
    40: "sha1",
}  # hexadecimal digits -> name; the hash columns of public tables are one of the three
_one_shard_at_a_time = threading.Lock()


def _digest(content: bytes, digits: int) -> str:
    if digits not in OTHER_HASHES:
        raise UserError(
            f"an expected hash has {digits} characters; allowed are MD5 (32), SHA-1 (40) and SHA-256 (64) in hexadecimal digits: "
            "name another hash column, or set dataset.fetch.verify_hash=false"
        )
    return hashlib.new(OTHER_HASHES[digits], content, usedforsecurity=False).hexdigest()


@dataclass
class Outcome:
    """What became of one row. `image` is where the encoded bytes lie in the spool file, or None when the row was dropped."""

    row: int
    reason: Reason | None = None
    http_status: int | None = None
    original_bytes: int | None = None
    original_sha256: str | None = None
    original_width: int | None = None
    original_height: int | None = None
    width: int | None = None
    height: int | None = None
    image: tuple[int, int] | None = None
    log: dict[str, Any] = field(default_factory=dict)


class _RowStream(io.BytesIO):
    """A body that knows its row, so that the resizer can say whose image it saw."""

    def __init__(self, row: int, content: bytes) -> None:
        super().__init__(content)
        self.row = row


class _Shard:
    """Our fetch, resizer and writer for one shard, and the side table they fill."""

    def __init__(
        self,
        rows: int,
        fetch: Callable[[str], Fetched],
        resize: Callable[[bytes], Resized],
        spool: Path,
        breaker: Breaker | None,
        expected_hashes: Sequence[str | None] | None,
    ) -> None:
        self.fetch, self.resize, self.breaker, self.expected_hashes = fetch, resize, breaker, expected_hashes
        self.outcomes = [Outcome(row) for row in range(rows)]
        self.written: set[int] = set()
        self.first_error: Exception | None = None
        self._spool = spool.open("wb")
        self._at = 0

    def fetch_row(self, row_and_url: tuple[int, str], **_: Any) -> tuple[int, _RowStream | None, str | None]:
        """Stands in for img2dataset's `download_image_with_retry`: -> (row, stream or None, error or None)."""
        row, url = row_and_url
        if self.first_error is not None:  # the shard is lost: the rows that are left are not asked for
            return row, None, "stopped"
        try:
            found = self.fetch(url)
            outcome = self.outcomes[row]
            outcome.http_status, outcome.reason = found.http_status, found.reason
            outcome.log = {"attempts": found.attempts, "detail": found.detail}
            if found.content is not None:
                outcome.original_bytes = len(found.content)
                outcome.original_sha256 = hashlib.sha256(found.content).hexdigest()
                self._verify(outcome, found.content)
            if outcome.reason is None and found.content is not None:
                return row, _RowStream(row, found.content), None
            self._count(outcome)
            return row, None, str(outcome.reason)
        except Exception as error:
            self._remember(error)
            return row, None, "fetch raised"

    def _verify(self, outcome: Outcome, content: bytes) -> None:
        """Whether these are the bytes that the source knew; others are not decoded."""
        expected = self.expected_hashes[outcome.row] if self.expected_hashes is not None else None
        if expected is None:
            return
        found = outcome.original_sha256 if len(expected) == SHA256_DIGITS else _digest(content, len(expected))
        if found != expected.lower():
            outcome.reason = Reason.HASH_MISMATCH
            outcome.log["detail"] = f"{found} where the source has {expected}"

    def _count(self, outcome: Outcome) -> None:
        if self.breaker is not None:
            self.breaker.add(outcome.reason)

    def resize_stream(
        self, stream: _RowStream, _boxes: Any
    ) -> tuple[bytes | None, int | None, int | None, int | None, int | None, str | None]:
        """Stands in for img2dataset's `Resizer.__call__`."""
        outcome = self.outcomes[stream.row]
        if self.first_error is not None:
            return None, None, None, None, None, "stopped"
        try:
            found = self.resize(stream.getvalue())
            outcome.reason = found.reason
            self._count(outcome)
        except Exception as error:
            self._remember(error)
            return None, None, None, None, None, "resize raised"
        outcome.original_width, outcome.original_height = found.original_width or None, found.original_height or None
        if found.content is None:
            outcome.log["detail"] = found.detail
            return None, None, None, None, None, str(found.reason)
        outcome.width, outcome.height = found.width, found.height
        return found.content, found.width, found.height, found.original_width, found.original_height, None

    def write(self, image: bytes | None, row: int) -> None:
        try:
            self.written.add(row)
            if image is not None:
                self._spool.write(image)
                self.outcomes[row].image = (self._at, len(image))
                self._at += len(image)
        except Exception as error:
            self._remember(error)

    def close(self) -> None:
        try:
            self._spool.close()
        except Exception as error:
            self._remember(error)

    def _remember(self, error: Exception) -> None:
        self.first_error = self.first_error or error


def download_shard(
    urls: Sequence[str],
    fetch: Callable[[str], Fetched],
    resize: Callable[[bytes], Resized],
    threads: int,
    scratch: Path,
    breaker: Breaker | None = None,
    expected_hashes: Sequence[str | None] | None = None,
) -> tuple[list[Outcome], Path]:
    """Fetch and resize one shard's URLs. Returns one outcome per URL, in order, and the spool file their bytes lie in.

    `expected_hashes` has, per URL, the hexadecimal MD5, SHA-1 or SHA-256 of the original bytes, or None; other bytes are dropped
    before they are decoded. `breaker` is told every row's outcome.
    Raises the first exception of our own fetch, resizer, writer or breaker (never swallowed; rows that are left are then not asked
    for), and RuntimeError when img2dataset lost a row.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import img2dataset.downloader as engine

    scratch.mkdir(parents=True, exist_ok=True)
    spool = scratch / "spool.bin"
    shard = _Shard(len(urls), fetch, resize, spool, breaker, expected_hashes)

    class Writer:
        """Stands in for img2dataset's sample writers; everything is known by row already, so only the bytes are kept."""

        def __init__(self, *_: Any) -> None:
            pass

        def write(self, image: bytes | None, _key: str, _caption: Any, meta: dict[str, Any]) -> None:
            shard.write(image, meta["row"])

        def close(self) -> None:
            shard.close()

    rows = scratch / "rows.arrow"
    table = pa.table({"url": pa.array(list(urls), pa.string()), "row": pa.array(range(len(urls)), pa.int64())})
    with pa.OSFile(str(rows), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    downloader = engine.Downloader(
        **_arguments(engine.Downloader, Writer, shard.resize_stream, threads, scratch, len(urls))
    )
    # img2dataset prints what it swallows; it is raised here instead.
    with _one_shard_at_a_time, _fetching_with(engine, shard.fetch_row), redirect_stdout(io.StringIO()):
        downloader.download_shard((0, str(rows)))
    if shard.first_error is not None:
        raise shard.first_error
    if shard.written != set(range(len(urls))):
        raise RuntimeError(f"img2dataset handed back {len(shard.written)} of {len(urls)} rows")
    return shard.outcomes, spool


def _arguments(downloader: Any, writer: Any, resizer: Any, threads: int, scratch: Path, rows: int) -> dict[str, Any]:
    """Keyword arguments for the installed version; versions differ in the optional ones."""
    known = {
        "sample_writer_class": writer, "resizer": resizer, "thread_count": threads, "save_caption": False, "extract_exif": False,
        "output_folder": str(scratch), "column_list": ["url", "row"], "timeout": 0, "number_sample_per_shard": max(rows, 1),
        "oom_shard_count": 5, "compute_hash": None, "verify_hash_type": None, "encode_format": "jpg", "retries": 0,
        "user_agent_token": None, "disallowed_header_directives": None,
    }  # fmt: skip
    parameters = inspect.signature(downloader.__init__).parameters
    needed = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty and name != "self"}
    if not needed <= known.keys():
        raise RuntimeError(
            f"this img2dataset needs arguments unknown to us: {sorted(needed - known.keys())}; use the pinned version"
        )
    return {name: value for name, value in known.items() if name in parameters}


@contextmanager
def _fetching_with(engine: Any, fetch: Callable[..., Any]) -> Iterator[None]:
    original = engine.download_image_with_retry
    engine.download_image_with_retry = fetch
    try:
        yield
    finally:
        engine.download_image_with_retry = original
