"""Images from a shard's JPEG bytes to CLIP vectors on 2 cores, random-weight ViT-B-32: images per second.

Ours: `embed.encoding.images.encode_shard_images`, two encoding threads in one process (what `workers = 0` gives), and the default of
users, two worker processes of one thread each, a shard each. Peer: the plain loop, a DataLoader with 0, 1 and 2 workers, open_clip's
preprocessing, batch 64, fp32, the model on both cores; the fastest of the three counts. Beside them the bare encoder: the same
batches as ready pixels, the faster of two encoding threads and torch with two threads. All are run in turn, several times; medians.
Ours in fp32 must give the peer's vectors; the error of bf16 is told.
"""

import argparse
import io
import json
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from benchmarks import SHARED
from data.dataset.shards import Sample, ShardWriter
from data.pipeline.config import parse_config
from data.pipeline.run import Run
from embed.clip.model import Clip, load_clip
from embed.encoding.images import Preprocess, StoredImage, encode_shard_images, index_shard
from embed.encoding.threads import EncodingThreads

PHOTOS = SHARED / "photos" / "images"
IMAGES, QUICK_IMAGES, REPETITIONS = 256, 128, 3
BATCH, CORES = 64, 2
CPU = torch.device("cpu")


def photographs(n: int) -> tuple[list[bytes], str]:
    """`n` encoded JPEGs and what they are."""
    files = sorted(PHOTOS.glob("*.jpg"))
    if files:
        return [files[i % len(files)].read_bytes() for i in range(n)], "COCO photographs"
    rng, found = np.random.default_rng(0), []
    for _ in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 36, 3), dtype=np.uint8))
        out = io.BytesIO()
        coarse.resize((384, 256), Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
        found.append(out.getvalue())
    return found, "synthetic pictures (no photographs here)"


def write_shard(path: Path, images: Sequence[bytes]) -> Path:
    with ShardWriter(path) as writer:
        for i, content in enumerate(images):
            meta = {"captions": ["a photograph"], "stored_sha256": sha256(content).hexdigest()}
            writer.write(Sample(f"{i:09d}", content, "jpg", meta))
    return path


def open_clip_of(folder: Path, precision: Any) -> Clip:
    logging.disable(logging.WARNING)  # open_clip says that the weights are random
    tables = {
        "run": {"name": "benchmark", "folder": str(folder)},
        "dataset": {"scenes": {"samples": 1}},
        "clip": {"source": "random", "model": "ViT-B-32"},
    }
    return load_clip(Run(parse_config(tables, "benchmark")), BATCH, precision)


class Photographs(Dataset[torch.Tensor]):
    """What a user writes: bytes from the tar by offset, PIL, open_clip's own transform."""

    def __init__(
        self, path: Path, stored: Sequence[StoredImage], transform: Callable[[Image.Image], torch.Tensor]
    ) -> None:
        self.path, self.places, self.transform = path, [(s.offset, s.size) for s in stored], transform

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> torch.Tensor:
        offset, size = self.places[index]
        with self.path.open("rb") as file:
            file.seek(offset)
            return self.transform(Image.open(io.BytesIO(file.read(size))).convert("RGB"))


def plain_loop(clip: Clip, path: Path, workers: int) -> torch.Tensor:
    torch.set_num_threads(CORES)
    loader = DataLoader(Photographs(path, index_shard(path), clip.preprocess), batch_size=BATCH, num_workers=workers)
    with torch.inference_mode():
        return torch.cat([clip.model.encode_image(pixels) for pixels in loader])


def ours(clip: Clip, path: Path, threads: int = CORES) -> torch.Tensor:
    with EncodingThreads(threads, CPU) as opened:
        return encode_shard_images(clip, path, index_shard(path), opened)[0]


def bare_encoding_threads(clip: Clip, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    with EncodingThreads(CORES, CPU) as opened:
        return torch.cat([future.result() for future in [opened.submit(clip.encode_pixels, b) for b in batches]])


def bare_torch_threads(clip: Clip, batches: Sequence[torch.Tensor]) -> torch.Tensor:
    torch.set_num_threads(CORES)
    return torch.cat([clip.encode_pixels(b) for b in batches])


def worker(folder: Path, precision: str, path: Path, orders: Any) -> None:
    """A process like a Dask worker's: loads its CLIP, then encodes its shard whenever it is told."""
    clip = open_clip_of(folder, precision)
    ours(clip, path, 1)
    orders.send("ready")
    while orders.recv():
        ours(clip, path, 1)
        orders.send("done")


class TwoWorkers:
    """Two processes, each with one encoding thread and half the images."""

    def __init__(self, folder: Path, precision: str, paths: Sequence[Path]) -> None:
        context, self.pipes, self.processes = multiprocessing.get_context("spawn"), [], []
        for path in paths:
            here, there = context.Pipe()
            process = context.Process(target=worker, args=(folder, precision, path, there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
        self._wait()

    def __call__(self) -> None:
        for pipe in self.pipes:
            pipe.send(True)
        self._wait()

    def _wait(self) -> None:
        for pipe in self.pipes:
            pipe.recv()

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(False)
            process.join()


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(
    runs: dict[str, Callable[[], Any]], n: int, repetitions: int
) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """Median images/s and CPU milliseconds an image of each, run in turn; and what each returned last."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    outputs: dict[str, Any] = {}
    for _ in range(repetitions):
        for name, run in runs.items():
            before, start = cpu_seconds(), time.perf_counter()
            outputs[name] = run()
            seconds, used = time.perf_counter() - start, cpu_seconds() - before
            rates[name].append(n / seconds)
            cpu[name].append(1000 * used / n)
    middle = [{name: statistics.median(found) for name, found in each.items()} for each in (rates, cpu)]
    return middle[0], middle[1], outputs


def cosine_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest 1 - cosine."""
    cosines = (normalize(found.double(), dim=1) * normalize(reference.double(), dim=1)).sum(dim=1)
    return float((1 - cosines).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES} images, once")
    quick = parser.parse_args().quick
    n, repetitions = (QUICK_IMAGES, 1) if quick else (IMAGES, REPETITIONS)
    images, what = photographs(n)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = write_shard(folder / "all.tar", images)
        halves = [write_shard(folder / f"{i}.tar", images[i * n // 2 : (i + 1) * n // 2]) for i in range(2)]
        clips = {precision: open_clip_of(folder, precision) for precision in ("fp32", "bf16")}
        prepare = Preprocess(clips["fp32"].preprocess_config)
        with torch.inference_mode():
            pixels = prepare.normalise(torch.from_numpy(np.stack([prepare.square(content) for content in images])))
        batches = pixels.split(BATCH)
        runs: dict[str, Callable[[], Any]] = {
            f"peer, {w} workers": partial(plain_loop, clips["fp32"], path, w) for w in range(3)
        }
        # A quick run leaves out the worker processes, and the slower of the two bare encoders.
        workers = {} if quick else {precision: TwoWorkers(folder, precision, halves) for precision in clips}
        for precision, clip in clips.items():
            clip.encode_pixels(pixels[:2])
            runs[f"ours, {precision}"] = partial(ours, clip, path)
            runs[f"bare encoding threads, {precision}"] = partial(bare_encoding_threads, clip, batches)
            if not quick:
                runs[f"bare torch threads, {precision}"] = partial(bare_torch_threads, clip, batches)
                runs[f"ours in 2 processes, {precision}"] = workers[precision]
        rates, cpu, outputs = measure(runs, n, repetitions)
        for each in workers.values():
            each.close()
    report(rates, cpu, outputs, n, what)


def report(rates: dict[str, float], cpu: dict[str, float], outputs: dict[str, Any], n: int, what: str) -> None:
    peer_name = max((name for name in rates if name.startswith("peer")), key=rates.__getitem__)
    reference = outputs[peer_name]
    difference = float((normalize(outputs["ours, fp32"], dim=1) - normalize(reference, dim=1)).abs().max())
    error = cosine_error(outputs["ours, bf16"], reference)
    assert difference < 1e-5, f"fp32 differs from the plain loop by {difference}"
    assert error < 1e-3, f"bf16 is {error} (1 - cosine) from fp32"
    print(f"{n} {what}, batch {BATCH}, {CORES} cores")
    for name, rate in rates.items():
        cost = "" if "processes" in name else f"  {cpu[name]:6.1f} ms of CPU an image"
        print(f"  {name:<28} {rate:7.1f} images/s  {rate / rates[peer_name]:5.2f} x the peer{cost}")
    share = {
        p: rates[f"ours, {p}"]
        / max(rate for name, rate in rates.items() if name.startswith("bare") and name.endswith(p))
        for p in ("fp32", "bf16")
    }
    print(f"  of the bare encoder's rate: fp32 {share['fp32']:.1%}, bf16 {share['bf16']:.1%}")
    print(f"  fp32: largest difference of unit vectors {difference:.1e}; bf16: largest 1 - cosine {error:.1e}")
    peer = rates[peer_name]
    result = {
        "name": "encode_images", "unit": "images/s", "ours": rates["ours, fp32"], "peer": peer, "ratio": rates["ours, fp32"] / peer,
        "n": n, "best_peer": peer_name, "data": what, "bf16": rates["ours, bf16"], "bf16_ratio": rates["ours, bf16"] / peer,
        "bf16_cosine_error": error, "fp32_difference": difference, "share_of_bare_fp32": share["fp32"], "share_of_bare_bf16": share["bf16"],
        "rates": rates, "cpu_ms_an_image": cpu,
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
