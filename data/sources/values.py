"""Text and values from outside, made safe to store: valid Unicode, JSON types, finite numbers."""

import math
import re
from typing import Any

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_BLANK = frozenset(("", "nan", "null", "none", "na", "n/a", "<na>", "\\n"))
_SURROGATES = re.compile("[\ud800-\udfff]")


def line(value: Any) -> str:
    """A value as one line of valid Unicode: white space and null bytes become single spaces, nothing is cut. Null and NaN: empty."""
    if isinstance(value, str):
        text = value
    elif value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    else:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if "\0" in text:
        text = text.replace("\0", " ")
    return valid(" ".join(text.split()))


def valid(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which neither Parquet nor UTF-8 can hold; as for bytes that are no UTF-8."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def number(value: Any) -> float | None:
    """A finite float, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def number_in(text: str) -> int | float | None:
    """The finite number that a cell of text holds, a whole one as int; None where it holds none."""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        return int(text)
    return None if "_" in text else number(text)


def is_blank(text: str) -> bool:
    """Whether a cell of text stands for no value: empty, or as tools write null."""
    return text.strip().lower() in _BLANK


def json_value(value: Any) -> Any:
    """A value of any table or file as JSON types; numbers that are not finite become null."""
    if isinstance(value, str):
        return valid(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {valid(str(name)): json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    return valid(str(value))
