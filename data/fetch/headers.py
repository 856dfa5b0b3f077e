"""The head of an HTTP answer, read line by line as browsers read it.

http.client's parser is one for mail: at the first line that is no header it takes the rest of the head for a body, and with it an
opt-out, the length or Retry-After.
"""

from http.client import HTTPException, IncompleteRead, LineTooLong
from typing import BinaryIO

LONGEST_LINE, MOST_LINES = 65_536, 100  # bytes; both as http.client has them
EMPTY = (b"\r\n", b"\n")


class Headers:
    """Values by name, in the order in which they came; Latin-1 text without white space around."""

    def __init__(self, lines: list[bytes]) -> None:
        self._values: dict[str, list[str]] = {}
        last: list[str] | None = None
        for line in lines:
            text = line.decode("latin-1")
            if last is not None and text[0] in " \t":  # folded: goes on with the value above
                last[-1] += " " + text.strip()
                continue
            name, colon, value = text.partition(":")
            last = (
                self._values.setdefault(name.strip().lower(), []) if colon else None
            )  # a line without one is no header
            if last is not None:
                last.append(value.strip())

    def get(self, name: str, default: str = "") -> str:
        """The first value; `name` in lower case."""
        values = self._values.get(name)
        return values[0] if values else default

    def get_all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def items_of(self, name: str) -> list[str]:
        """The items of a list, over all headers of that name, in lower case."""
        return [item.strip().lower() for value in self.get_all(name) for item in value.split(",")]

    def content_length(self) -> int | None:
        """None where there is none, or none that is a number. Raises HTTPException where there are several that differ."""
        lengths = set(self.items_of("content-length"))
        if len(lengths) > 1:
            raise HTTPException(f"several lengths: {', '.join(sorted(lengths))}"[:200])
        text = lengths.pop() if lengths else ""
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    def is_chunked(self) -> bool:
        """Raises HTTPException for a transfer coding that was not asked for."""
        codings = set(self.items_of("transfer-encoding")) - {"", "identity"}
        if codings - {"chunked"}:
            raise HTTPException(f"transfer codings: {', '.join(sorted(codings))}"[:200])
        return bool(codings)


def read_headers(file: BinaryIO) -> Headers:
    """Up to the empty line. Raises IncompleteRead where the connection ends before it: what is missing may be an opt-out."""
    lines: list[bytes] = []
    while True:
        line = file.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise LineTooLong("header line")
        if not line.endswith(b"\n"):
            raise IncompleteRead(line)
        if line in EMPTY:
            return Headers(lines)
        lines += filter(None, line[:-1].split(b"\r"))  # a carriage return alone ends a line too, as in Chromium
        if len(lines) > MOST_LINES:
            raise HTTPException(f"more than {MOST_LINES} headers")
