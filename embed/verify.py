"""Does the cache still belong to its images? Digests, keys, hashes, norms, and a re-encoded sample of rows."""

import numpy as np
import pyarrow.parquet as pq
import torch

from data.run import Run
from data.shards import ShardReader
from embed.cache import as_matrix
from embed.clip import load_clip
from embed.encoder import NULL_PART
from embed.reader import EmbeddingReader

NORM_TOLERANCE = 1e-3  # float16 rounding of a unit vector moves its length by up to 6e-5
COSINE_TOLERANCE = 1e-3
REENCODED_ROWS = 32


def verify_cache(run: Run) -> list[str]:
    """What is wrong with the run's embedding cache, one line each; empty when nothing is."""
    problems = run.embeddings.require("make embeddings").verify()
    if problems:
        return problems
    clip = load_clip(run)
    reader = EmbeddingReader(run.embeddings, identity=clip.identity)
    shards = ShardReader(run.dataset)
    if sorted(set(reader.keys.tolist())) != shards.keys():
        missing = set(shards.keys()) ^ set(reader.keys.tolist())
        problems.append(f"keys of cache and shards differ in {len(missing)} samples, e.g. {sorted(missing)[0]}")
        return problems
    for receipt in run.embeddings.receipts():
        if receipt.name != NULL_PART:
            problems += _check_part(str(run.embeddings.folder / f"{receipt.name}.parquet"), reader.dim, shards)
    rows = np.sort(np.random.default_rng(run.seed).permutation(len(reader))[:REENCODED_ROWS])
    batch = reader.fetch(rows)
    again = {
        # One at a time: stored images need not have equal sizes.
        "image": (torch.cat([clip.encode_images(shards.image(k)[None]) for k in batch.keys]), batch.image_embedding),
        "text": (clip.encode_text(clip.tokenize(reader.captions(rows))), batch.text_embedding),
    }
    for name, (fresh, stored) in again.items():
        worst = float((1 - (fresh * stored).sum(dim=1)).max())
        if worst > COSINE_TOLERANCE:
            problems.append(
                f"re-encoding {len(rows)} rows: a stored {name} embedding is {worst:.4f} (1 - cosine) from the encoder's"
            )
    return problems


def _check_part(path: str, dim: int, shards: ShardReader) -> list[str]:
    table = pq.read_table(path, columns=["key", "image_hash", "image_embedding", "text_embedding"])
    problems = []
    for column in ("image_embedding", "text_embedding"):
        norms = np.linalg.norm(as_matrix(table[column], "<f2", dim).astype(np.float64), axis=1)
        if len(norms) and np.abs(norms - 1).max() > NORM_TOLERANCE:
            problems.append(
                f"{path}: {column} of row {int(np.abs(norms - 1).argmax())} has length {norms[np.abs(norms - 1).argmax()]:.4f}, not 1"
            )
    for key, stored in zip(table["key"].to_pylist(), table["image_hash"].to_pylist(), strict=True):
        if shards.meta(key)["stored_sha256"][:32] != stored.hex():
            problems.append(f"{path}: image hash of {key} is not that of the stored image")
            break
    return problems
