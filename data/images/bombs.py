"""Files over whose pixels a decoder goes as often as the file says: counted before anything is decoded.

A progressive JPEG's last scan, 150 bytes, can stand in it a thousand times, and each one is a walk over the whole picture; a PNG can
hold its colour profile, a megabyte when inflated, as often. Nothing could stop the decoder then: it is one call of a C library.
"""

import re

import numpy as np

START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9  # JPEG markers, behind their 0xFF
ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length: TEM, restarts
MARKER = re.compile(rb"\xff([^\x00\xff])")
# Honest progressive files have about ten scans, optimised ones (mozjpeg) up to some twenty; 25 are allowed at any size.
FEW_SCANS, MOST_SCANS = 25, 100
SCANNED_PIXELS = 2_500_000_000  # pixels x scans that more than a few scans may come to: some two seconds
MOST_PROFILES = 10  # the format allows one; a few more are chance, four bytes of a compressed picture


def most_scans(pixels: int) -> int:
    """How many scans a JPEG of so many pixels may have."""
    return max(FEW_SCANS, min(MOST_SCANS, SCANNED_PIXELS // max(pixels, 1)))


def has_more_scans(content: bytes, most: int) -> bool:
    """Whether a JPEG has more than `most` scans, counted as libjpeg goes through it: previews in its segments are not its scans."""
    if _pairs(content) <= most:
        return False
    scans, at = 0, 2
    while scans <= most and (found := MARKER.search(content, at)):
        kind, at = found[1][0], found.end()
        if kind == END_OF_IMAGE:
            return False
        scans += kind == START_OF_SCAN
        if kind not in ALONE:
            at += int.from_bytes(content[at : at + 2], "big")
    return scans > most


def _pairs(content: bytes) -> int:
    """How often the start marker's two bytes stand anywhere, at even and at odd places; ten times as fast as bytes.count."""
    places = (
        np.frombuffer(content, "<u2", (len(content) - first) // 2, first)
        for first in (0, 1)
        if len(content) > first + 1
    )
    return sum(int(np.count_nonzero(place == START_OF_SCAN << 8 | 0xFF)) for place in places)


def has_many_profiles(content: bytes) -> bool:
    """Whether a PNG has so many colour profiles that reading them is all it is for."""
    return content.startswith(b"\x89PNG") and content.count(b"iCCP") > MOST_PROFILES
