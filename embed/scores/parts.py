"""The parts of a cache that scores are made from, one for one."""

from dataclasses import dataclass
from pathlib import Path

from data.pipeline.artifacts import Artifact
from data.pipeline.stage import Input
from embed.format import NULL_PART
from embed.reading.parts import CacheParts


@dataclass(frozen=True)
class CachePart:
    """One part of the cache: its name, its Parquet file, and the input by which a score refers to it."""

    name: str
    path: Path
    input: Input


def cache_parts(embeddings: Artifact) -> list[CachePart]:
    """Every part of a complete cache but the empty caption's, in the manifest's order. Raises UserError where one is missing or cut."""
    CacheParts(embeddings, None, None, None)  # readers refuse it
    return [
        CachePart(name, embeddings.folder / f"{name}.parquet", Input(f"embeddings:{name}", digest))
        for name, digest in embeddings.part_digests().items()
        if name != NULL_PART
    ]
