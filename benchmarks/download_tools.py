"""The two tools of the download benchmark, each run in a process of its own with what it needs:

    python -m benchmarks.download_tools ours|img2dataset TABLE FOLDER PER_SHARD

Equal settings: center_crop to 256, JPEG of quality 95 with 4:2:0 chroma, sha256 of the original, 2 processes of 16 threads, 10 s a
download, no second attempt, X-Robots-Tag respected, tars with captions. Ours has everything else switched on that it has by default:
address guards, byte and redirect limits, limits for each host (high enough for all threads, as there is one host), breaker, ledger,
hashes of the stored bytes, atomic publishing.
"""

import os
import sys
from pathlib import Path
from typing import Any

SIZE, QUALITY, PROCESSES, THREADS, TIMEOUT = 256, 95, 2, 16, 10


def main() -> None:
    tool, table, folder, per_shard = sys.argv[1:]
    {"ours": run_ours, "img2dataset": run_img2dataset}[tool](Path(table), Path(folder), int(per_shard))


def config_of(table: Path, folder: Path, per_shard: int) -> dict[str, Any]:
    return {
        "run": {"name": "ours", "folder": str(folder)},
        "cluster": {"workers": PROCESSES},
        "dataset": {
            "table": {"path": str(table), "url": "url", "caption": "caption"},
            "samples_per_shard": per_shard,
            "image": {"mode": "center_crop", "size": SIZE, "format": "jpg", "quality": QUALITY, "chroma": "420"},
            "fetch": {
                "threads": THREADS, "deadline": float(TIMEOUT), "attempts": 1, "per_host": PROCESSES * THREADS,
                "allow_private_hosts": True, "contact": "benchmark@localhost",
            },
        },
    }  # fmt: skip


def run_ours(table: Path, folder: Path, per_shard: int) -> None:
    from data.dataset.build import build_dataset
    from data.pipeline.config import parse_config
    from data.pipeline.executors import open_executor
    from data.pipeline.run import Run
    from data.pipeline.settings import ClusterSettings

    run = Run.open(parse_config(config_of(table, folder, per_shard), "benchmark"))
    with open_executor(run.config[ClusterSettings], run.scratch / "dask") as executor:
        build_dataset(run, executor)


def run_img2dataset(table: Path, folder: Path, per_shard: int) -> None:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    from img2dataset import download

    download(
        url_list=str(table), input_format="parquet", url_col="url", caption_col="caption", output_folder=str(folder / "img2dataset"),
        output_format="webdataset", number_sample_per_shard=per_shard, processes_count=PROCESSES, thread_count=THREADS,
        image_size=SIZE, resize_mode="center_crop", encode_format="jpg", encode_quality=QUALITY, compute_hash="sha256",
        extract_exif=False, timeout=TIMEOUT, retries=0,
    )  # fmt: skip


if __name__ == "__main__":
    main()
