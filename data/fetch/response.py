"""One HTTP answer: its body within a byte limit, and how long it asks us to wait."""

import email.utils
import time
import zlib
from http.client import HTTPResponse, IncompleteRead, UnknownProtocol

from data.fetch.connections import Timed
from data.fetch.headers import Headers, read_headers

LONGEST_WAIT = 86_400.0
GZIP, GZIP_MAGIC = ("gzip", "x-gzip"), b"\x1f\x8b"
INTERIM = (100, 102, 103)


class BodyTooLarge(Exception):
    """More bytes than allowed."""


class Response(HTTPResponse):
    """An answer that is read from a connection of ours: http.client reads its body, we its head. `head` are its headers."""

    head: Headers

    def __init__(self, connection: Timed) -> None:
        super().__init__(connection, method="GET")

    def begin(self) -> None:
        """Read the head; interim answers (100, 102, 103) are read over. Raises HTTPException and OSError."""
        self.status = INTERIM[0]
        while self.status in INTERIM:
            version, self.status, _ = self._read_status()  # type: ignore[attr-defined]
            self.head = read_headers(self.fp)
        if not version.startswith(("HTTP/1.", "HTTP/0.9")):
            raise UnknownProtocol(version)
        self.chunked, self.chunk_left = self.head.is_chunked(), None
        self.length = None if self.chunked else self.head.content_length()
        if self.status in (204, 304) or self.status < 200:
            self.length = 0
        asked = self.head.get("connection").lower()
        stays = "keep-alive" in asked if version in ("HTTP/1.0", "HTTP/0.9") else "close" not in asked
        self.will_close = not stays or (self.length is None and not self.chunked)

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:  # "-1" is a number to Python, and would read without a limit
            raise ValueError(f"a chunk of {size} bytes")
        return size

    def body(self, max_bytes: int) -> bytes:
        """The whole body. Raises BodyTooLarge before reading it where its length is known, IncompleteRead when it ends early."""
        if self.length is None:  # chunked, or until the server closes
            content = self.read(max_bytes + 1)
        elif self.length > max_bytes:
            raise BodyTooLarge(f"{self.length} bytes announced")
        else:
            content = self.read()
        if len(content) > max_bytes:
            raise BodyTooLarge(f"more than {max_bytes} bytes")
        # We ask for no compression. Some servers compress all the same; others only say so, and send the image as it is.
        if content.startswith(GZIP_MAGIC) and self.head.get("content-encoding").lower() in GZIP:
            return _inflated(content, max_bytes)
        return content

    def is_at_its_end(self) -> bool:
        """Whether the connection can take the next request."""
        return self.isclosed() and not self.will_close and self.status >= 200

    def retry_after(self) -> float:
        """Seconds that a 429 or 503 asks us to wait; 0 where it does not say."""
        return seconds_of(self.head.get("retry-after")) if self.status in (429, 503) else 0.0


def _inflated(content: bytes, max_bytes: int) -> bytes:
    machine = zlib.decompressobj(wbits=31)
    try:
        plain = machine.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise IncompleteRead(content) from error
    if len(plain) > max_bytes:
        raise BodyTooLarge(f"more than {max_bytes} bytes after decompression")
    if not machine.eof:
        raise IncompleteRead(plain)
    return plain


def seconds_of(retry_after: str) -> float:
    """A Retry-After value, seconds or an HTTP date, in seconds from now, from 0 to a day; 0 for what is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), LONGEST_WAIT)
    try:
        wait = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError, TypeError):
        return 0.0
    return min(max(wait, 0.0), LONGEST_WAIT)
