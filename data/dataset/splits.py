"""Which split an image falls into: test, val or train, by hashing."""

import hashlib

from data.sources.settings import SplitSettings

PROTECTED = ("test", "val", "train")  # the most protected split first
EVALUATION = PROTECTED[:2]


def draw_split(identity: str, shares: SplitSettings, seed: int) -> str:
    """`test`, `val` or `train` by hashing (seed, image identity): the same image lands in the same split in any dataset."""
    digest = hashlib.sha256(f"{seed}/{identity}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    if u < shares.test:
        return "test"
    return "val" if u < shares.test + shares.val else "train"
