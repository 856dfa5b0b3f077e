"""`python -m embed build|scores|verify --config FILE`: the front door of the embedding room."""

import argparse
import sys

from data.cli import Command, front_door
from data.config import Config
from data.errors import StageFailed
from data.run import Run
from data.settings import ClusterSettings


def build(config: Config, _: argparse.Namespace) -> None:
    from data.executors import open_executor
    from embed.encoder import build_embeddings

    run = Run.open(config)
    run.dataset.require("make dataset")
    with open_executor(config[ClusterSettings], run.scratch) as executor:
        artifact = build_embeddings(run, executor)
    counts = artifact.manifest()["counts"]
    images, captions, pairs = (counts[name] for name in ("samples", "distinct_captions", "pairs"))
    print(f"embedded {images:,} images and {captions:,} distinct captions, {pairs:,} pairs: {artifact.folder}")


def scores(config: Config, _: argparse.Namespace) -> None:
    from embed.scores import build_similarity

    artifact = build_similarity(Run.open(config))
    print(f"scored {artifact.manifest()['counts']['pairs']:,} pairs: {artifact.folder}")


def verify(config: Config, _: argparse.Namespace) -> None:
    from embed.verify import verify_cache

    run = Run(config)
    problems = verify_cache(run)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise StageFailed(f"{run.embeddings.folder}: {len(problems)} problems; delete it and run `make embeddings`")
    print(f"{run.embeddings.folder}: keys, hashes, norms and re-encoded rows agree")


COMMANDS = (
    Command("build", "embed every stored pair with the run's CLIP", build),
    Command("scores", "score every pair (similarity)", scores),
    Command("verify", "compare the cache with its shards and re-encode a sample of rows", verify),
)

if __name__ == "__main__":
    raise SystemExit(front_door("embed", __doc__ or "", COMMANDS))
