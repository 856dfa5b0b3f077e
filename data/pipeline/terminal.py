"""Text from outside, made safe to show on a terminal or in a picture."""

import re
import unicodedata

# Escapes, line ends and null bytes; marks that reverse or hide text; halves of a pair; what no font has.
UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
JOINERS = "\u200c\u200d"  # needed to write Persian, Hindi and many emoji
# What a terminal acts on: colours and cursor moves, titles and links, single commands.
ESCAPE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")


def printable(text: str) -> str:
    """The text on one line, without control characters, terminal escapes and direction marks."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in ESCAPE.sub("", text))


def _shown(character: str) -> str:
    if character in "\t\n\r\v\f\x85\u2028\u2029":
        return " "
    return "" if unicodedata.category(character) in UNSAFE and character not in JOINERS else character


def counted(n: int, one: str, many: str | None = None) -> str:
    """`1 entry`, `2,000 entries`; the plural ends in s where none is given."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"
