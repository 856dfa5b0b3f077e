"""Downloading photographs: ours (`data.dataset.build`, two Dask workers) beside img2dataset's own `download()`, equal settings and pixels.

The primary figure is CPU seconds for 1,000 images: user and system time of the tool's whole process tree, the server's excluded.
Start-up (imports, cluster, pool, plan) is excluded: a process counts once its download threads run, until the output is complete.
Each tool runs twice on half the images, in the order ours, peer, peer, ours. Memory is the peak of a whole run. `ratio` is
img2dataset's figure over ours.

Verified for both tools: every image stored, under its URL, with the hash of its original; ours byte for byte equal to img2dataset's
(grey photographs, which it stores as grey and we as RGB: pixel for pixel); `data verify` finds nothing wrong.

The photographs are those of ../shared/data/photos (129, longest side 384 px), repeated with a query string; larger sides are the same
photographs enlarged once. Where that folder is absent, blurred noise stands in, and the output says so. Decoding at reduced scale,
which gives other pixels, is reported apart.
"""

import argparse
import io
import json
import shutil
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import SHARED
from benchmarks.download_measure import Cost, Server, cost_of, serving
from benchmarks.download_tools import PROCESSES, THREADS
from data.images.resize import resize_image
from data.images.settings import ImageSettings
from data.pipeline.artifacts import Artifact

PHOTOS = SHARED / "photos" / "images"
SIDES = (384, 640, 1920)
SHARDS = 10  # img2dataset replaces a process after five shards
IMAGES, QUICK_IMAGES = 5000, 1000
ROUNDS = 2
TOOLS = ("ours", "img2dataset")


@dataclass(frozen=True)
class Measured:
    """What `n` images cost either tool beyond its start-up, and the server meanwhile."""

    side: int
    n: int
    cost: dict[str, Cost]
    server: dict[str, float]
    equal_bytes: int

    def numbers(self) -> dict[str, Any]:
        ours, peer = (round(self.cost[tool].cpu / self.n * 1000, 3) for tool in TOOLS)
        rate, peer_rate = (round(self.n / self.cost[tool].wall, 1) for tool in TOOLS)
        gb, peer_gb = (round(self.cost[tool].memory / 1e9, 2) for tool in TOOLS)
        return {
            "side": self.side, "ours": ours, "peer": peer, "ratio": round(peer / ours, 3), "n": self.n, "equal_bytes": self.equal_bytes,
            "images_per_s": rate, "peer_images_per_s": peer_rate, "peak_gb": gb, "peer_peak_gb": peer_gb,
            "start_up_cpu": round(self.cost["ours"].start_up, 1), "peer_start_up_cpu": round(self.cost["img2dataset"].start_up, 1),
            "server": round(self.server["ours"], 3), "peer_server": round(self.server["img2dataset"], 3),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES} images of {SIDES[0]} px, within a minute")
    parser.add_argument("--side", type=int, choices=SIDES, help="longest side in pixels; all three without it")
    parser.add_argument("--images", type=int, help=f"images to measure, {IMAGES:,} without it")
    arguments = parser.parse_args()
    images = arguments.images or (QUICK_IMAGES if arguments.quick else IMAGES)
    sides = (arguments.side or SIDES[0],) if arguments.quick or arguments.side else SIDES
    real = PHOTOS.is_dir()
    print(
        f"{'photographs' if real else 'SYNTHETIC images (no photographs found)'}, {images:,} measured a side",
        flush=True,
    )
    if (busy := psutil.getloadavg()[0]) > 1:
        print(
            f"this machine is busy (load {busy:.1f}): processor time counts, but the two tools may not have met equal conditions"
        )
    results = []
    for side in sides:
        with tempfile.TemporaryDirectory(prefix="download-") as name:
            folder = Path(name)
            write_photos(folder / "photos", side)
            measured = measure(folder, side, images, 1 if arguments.quick else ROUNDS)
            results.append(measured.numbers() | {"reduced_decode": reduced(folder / "photos")})
        report(results[-1])
    first = results[0]
    print(
        json.dumps(
            {"name": "download", "unit": "CPU s per 1,000 images"} | first | {"photographs": real, "sides": results[1:]}
        )
    )


def write_photos(folder: Path, side: int) -> None:
    """JPEGs whose longest side is `side`: the photographs as they are where they have it, else enlarged, quality 95."""
    folder.mkdir()
    if not PHOTOS.is_dir():
        for i in range(48):
            rng = np.random.default_rng(i)
            layers = (
                Image.fromarray(rng.integers(0, 256, (side // c * 3 // 4, side // c, 3), np.uint8)) for c in (64, 12, 3)
            )
            grown = [
                np.asarray(layer.resize((side, side * 3 // 4), Image.Resampling.BICUBIC), float) for layer in layers
            ]
            blend = grown[0] * 0.6 + grown[1] * 0.3 + grown[2] * 0.1
            Image.fromarray(blend.astype(np.uint8)).save(folder / f"{i:03d}.jpg", quality=90)
        return
    for path in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(path) as image:
            factor = side / max(image.size)
            if side <= 384:
                (folder / path.name).write_bytes(path.read_bytes())
            else:
                size = (round(image.width * factor), round(image.height * factor))
                image.resize(size, Image.Resampling.LANCZOS).save(folder / path.name, quality=95)


def measure(folder: Path, side: int, images: int, rounds: int) -> Measured:
    each = images // rounds
    cost, server_cost, equal = dict.fromkeys(TOOLS, Cost()), dict.fromkeys(TOOLS, 0.0), 0
    with serving(folder / "photos") as server:
        table = write_table(folder, server, each)
        for turn in range(rounds):
            for tool in TOOLS if turn % 2 == 0 else TOOLS[::-1]:
                before, served = server.cpu(), server.served()
                cost[tool] += run_tool(tool, table, folder / str(turn), each)
                assert server.served() - served == each, (
                    f"{tool} asked {server.served() - served} times for {each} images"
                )
                server_cost[tool] += (server.cpu() - before) / (each * rounds) * 1000
            equal += verify(folder / str(turn), table)
            shutil.rmtree(folder / str(turn))
    return Measured(side, each * rounds, cost, server_cost, equal)


def run_tool(tool: str, table: Path, folder: Path, images: int) -> Cost:
    per_shard = -(-images // SHARDS)
    out = folder / tool
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.download_tools", tool, str(table), str(folder), str(per_shard)]
    return cost_of(
        command, folder / f"{tool}.log", PROCESSES, THREADS, partial(is_complete, out, -(-images // per_shard))
    )


def is_complete(out: Path, shards: int) -> bool:
    return (out / "dataset" / "manifest.json").exists() or len(list(out.glob("*_stats.json"))) == shards


def write_table(folder: Path, server: Server, rows: int) -> Path:
    names = sorted(path.name for path in (folder / "photos").iterdir())
    urls = [f"{server.address}/{names[i % len(names)]}?copy={i}" for i in range(rows)]
    path = folder / f"urls-{rows}.parquet"
    pq.write_table(pa.table({"url": urls, "caption": [f"photograph number {i}" for i in range(rows)]}), path)
    return path


def verify(folder: Path, table: Path) -> int:
    """Compare all stored images; returns how many are equal byte for byte (the others are grey, of equal pixels)."""
    dataset = Artifact(folder / "ours" / "dataset")
    assert dataset.verify() == []
    ours = read_tars(dataset.folder / "shards", "original_sha256")
    theirs = read_tars(folder / "img2dataset", "sha256")
    urls = pq.read_table(table)["url"].to_pylist()
    assert ours.keys() == theirs.keys() == set(urls), f"{len(ours)} and {len(theirs)} stored of {len(urls)}"
    equal = 0
    for url, (image, original) in ours.items():
        other, other_original = theirs[url]
        assert original == other_original, url
        equal += image == other
        assert image == other or grey_and_equal(image, other), f"{url}: other pixels"
    return equal


def read_tars(folder: Path, hash_name: str) -> dict[str, tuple[bytes, str]]:
    """URL -> (stored image, hash of the original)."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar}
            for name in members:
                if name.endswith(".json"):
                    meta = json.load(tar.extractfile(members[name]))  # type: ignore[arg-type]
                    image = tar.extractfile(members[name.replace(".json", ".jpg")])
                    assert image is not None
                    found[meta["url"]] = image.read(), meta[hash_name]
    return found


def grey_and_equal(ours: bytes, theirs: bytes) -> bool:
    with Image.open(io.BytesIO(ours)) as a, Image.open(io.BytesIO(theirs)) as b:
        return b.mode == "L" and np.array_equal(np.asarray(a), np.asarray(b.convert("RGB")))


def reduced(photos: Path) -> dict[str, Any]:
    """Decoding at reduced scale against full decoding: resizing alone, in this process. Photographs too small for it are left out."""
    full = ImageSettings(chroma="420")
    fast = full.model_copy(update={"reduced_decode": True})
    cpu, errors, n = {"full": 0.0, "reduced": 0.0}, [], 0
    for path in sorted(photos.iterdir())[::2]:
        content = path.read_bytes()
        with Image.open(path) as image:
            if min(image.size) < 2 * full.size:
                continue
        pair = []
        for name, settings in (("full", full), ("reduced", fast)):
            start = time.process_time()
            found = resize_image(content, settings)
            cpu[name] += time.process_time() - start
            assert found.content is not None
            pair.append(np.asarray(Image.open(io.BytesIO(found.content)), float))
        n += 1
        errors.append(10 * np.log10(255**2 / max(1e-9, ((pair[0] - pair[1]) ** 2).mean())))
    if not n:
        return {"n": 0}
    psnr = {"psnr_median": round(float(np.median(errors)), 1), "psnr_worst": round(float(min(errors)), 1)}
    return {"n": n, "speed": round(cpu["full"] / cpu["reduced"], 2), "ms": round(cpu["reduced"] / n * 1000, 2)} | psnr


def report(r: dict[str, Any]) -> None:
    print(
        f"{r['side']} px, {r['n']:,} images, {r['equal_bytes']:,} of all equal byte for byte, the others grey of equal pixels"
    )
    print(f"  CPU s per 1,000 images   ours {r['ours']:.2f}   img2dataset {r['peer']:.2f}   ratio {r['ratio']:.2f}")
    print(f"  images/s                 ours {r['images_per_s']:.0f}   img2dataset {r['peer_images_per_s']:.0f}")
    print(f"  peak memory, GB          ours {r['peak_gb']:.2f}   img2dataset {r['peer_peak_gb']:.2f}")
    print(f"  (server's CPU, excluded: {r['server']:.2f} and {r['peer_server']:.2f} s per 1,000)")
    if r["reduced_decode"]["n"]:
        d = r["reduced_decode"]
        print(
            f"  apart, unequal work: decoding at reduced scale makes resizing {d['speed']:.1f}x as fast; "
            f"PSNR to full decoding {d['psnr_median']:.0f} dB median, {d['psnr_worst']:.0f} dB worst of {d['n']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
