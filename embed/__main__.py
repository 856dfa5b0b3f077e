"""`python -m embed build|scores|verify|show|export --config FILE`: the front door of the embedding room."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from data.pipeline.artifacts import read_json
from data.pipeline.cli import Command, front_door
from data.pipeline.config import Config
from data.pipeline.errors import StageFailed, UserError
from data.pipeline.run import Run
from data.pipeline.settings import ClusterSettings

WORTH_A_CLUSTER = 64  # parts of scores: below, a cluster takes longer to start than they take to make


def build(config: Config, _: argparse.Namespace) -> None:
    from data.pipeline.executors import open_executor
    from embed.encoding.devices import gpus
    from embed.encoding.stage import build_embeddings
    from embed.settings import EmbeddingsSettings

    run = Run.open(config)
    device, cluster = config[EmbeddingsSettings].device, config[ClusterSettings]
    here = 0 if cluster.address else len(gpus(device))  # a running scheduler's workers know their own
    with open_executor(cluster, run.scratch, resource=None if device == "cpu" else "GPU", holders=here) as executor:
        artifact = build_embeddings(run, executor)
    statistics = read_json(artifact.folder / "statistics.json", "statistics of the cache")
    counts, about = statistics["counts"], "about " if "text" in statistics["estimated"] else ""
    print(
        f"embedded {counts['samples']:,} images and {about}{counts['distinct_captions']:,} distinct captions, "
        f"{counts['pairs']:,} pairs, {counts.get('truncated_captions', 0):,} captions truncated: {artifact.folder}"
    )
    print(_in_short(statistics))


def _in_short(statistics: dict[str, Any]) -> str:
    pairs, shuffled = statistics["similarity"]["pairs"], statistics["similarity"]["shuffled"]
    sizes = ", ".join(
        f"{side} {statistics[side]['effective_dimension']['participation_ratio']:.1f} of {len(statistics[side]['eigenvalues'])}"
        for side in ("image", "text")
    )
    return (
        f"cosine of pairs {pairs['mean']:.3f} (shuffled {shuffled['mean']:.3f}), effective dimensions: {sizes}; "
        "statistics.json, log/statistics.png"
    )


def scores(config: Config, _: argparse.Namespace) -> None:
    from data.pipeline.executors import open_executor
    from embed.scores.build import build_scores

    run = Run.open(config)
    with open_executor(config[ClusterSettings], run.scratch, at_least=WORTH_A_CLUSTER) as executor:
        for artifact in build_scores(run, executor):
            counts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in artifact.manifest()["counts"].items())
            print(f"scored {counts}: {artifact.folder}")


def verify(config: Config, arguments: argparse.Namespace) -> None:
    from embed.verify import verify_cache

    run = Run(config)
    problems = verify_cache(run, arguments.rows)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise StageFailed(
            f"{run.embeddings.folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}, told above; `make embeddings` makes a "
            "part again once its file is deleted, and the whole cache once the folder is"
        )
    print(f"{run.embeddings.folder}: parts, keys, hashes, lengths, scores, probes and re-encoded rows agree")


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="pairs that are encoded again (32)")


def show(config: Config, arguments: argparse.Namespace) -> None:
    from embed import show as looking
    from embed.encoding.recorded_clip import cache_clip
    from embed.export import require_place

    if arguments.n < 1:
        raise UserError(f"--n is {arguments.n}; at least 1 image is shown")
    if arguments.out:
        if Path(arguments.out).is_dir():
            raise UserError(
                f"--out: {arguments.out} is a folder; name a file for the picture, e.g. {arguments.out}/a.png"
            )
        require_place(Path(arguments.out))
    run = Run(config)
    run.embeddings.require("make embeddings")
    _require_view(run, arguments.view)
    if arguments.key is not None:
        query = looking.key_query(run, arguments.key)
    elif arguments.image is not None:
        query = looking.image_query(cache_clip(run), Path(arguments.image))
    else:
        query = looking.caption_query(cache_clip(run), arguments.caption)
    found = looking.nearest(run, query, arguments.n, arguments.view, arguments.split)
    shown = looking.read_neighbours(run, found, arguments.view)
    print(looking.table(query, found, shown))
    slug = re.sub(r"[^A-Za-z0-9]+", "-", query.title)[:60].strip("-")
    path = Path(arguments.out) if arguments.out else run.folder / "show" / f"nearest-{slug}.png"
    looking.write_neighbours(run, query, shown, path)
    print(f"drawn: {path}")


def _show_options(parser: argparse.ArgumentParser) -> None:
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--caption", help="images nearest to these words")
    query.add_argument("--image", metavar="FILE", help="images nearest to this one")
    query.add_argument("--key", help="images nearest to this stored sample")
    parser.add_argument("--n", type=int, default=24, help="how many (24)")
    parser.add_argument("--out", metavar="FILE", help="the picture (show/ in the run folder)")
    _selection_options(parser)


def export(config: Config, arguments: argparse.Namespace) -> None:
    from embed.export import export_cache

    run = Run(config)
    run.embeddings.require("make embeddings")
    _require_view(run, arguments.view)
    out = Path(arguments.out)
    rows = export_cache(run, out, arguments.format, arguments.dtype, arguments.view, arguments.split)
    print(f"exported {rows:,} pairs: {out}")


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", required=True, choices=("list", "npy"), help="Parquet with list columns, or npy and metadata"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="a folder that is new or empty")
    parser.add_argument("--dtype", choices=("float16", "float32"), help="of the vectors (list: float32, npy: float16)")
    _selection_options(parser)


def _require_view(run: Run, name: str | None) -> None:
    """Raise UserError for a view that is not there, naming those that are."""
    made = sorted(plan.parent.name for plan in (run.folder / "views").glob("*/plan.json"))
    if name is not None and made and name not in made:
        raise UserError(f"--view: {run.folder / 'views'} has no view {name!r}; it has {', '.join(made)}")


def _selection_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--view", metavar="NAME", help="only pairs that this view keeps")
    parser.add_argument("--split", metavar="NAME", help="only pairs of this split")


COMMANDS = (
    Command("build", "embed every stored pair with the run's CLIP", build),
    Command("scores", "score every pair, as the settings ask", scores),
    Command("verify", "compare the cache with its shards and encode a sample of rows again", verify, _verify_options),
    Command("show", "the images nearest to a caption, an image or a sample, as a contact sheet", show, _show_options),
    Command("export", "the cache for pandas and DuckDB, or as npy files", export, _export_options),
)

if __name__ == "__main__":
    raise SystemExit(front_door("embed", __doc__ or "", COMMANDS))
