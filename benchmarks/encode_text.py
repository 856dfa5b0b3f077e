"""Captions through a CLIP's text tower: `python -m benchmarks.encode_text [--quick]`.

Ours (distinct captions, each distinct beginning once) beside the straightforward loop: open_clip's tokenizer, 77 places, fp32,
`encode_text` in batches of 64 and of 256, of which the better counts. COCO captions through a ViT-B-32 with seeded random weights,
tokenising included, on the same captions and threads, by turns.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import SHARED
from data.pipeline.config import parse_config
from data.pipeline.run import Run
from embed.clip.captions import encode_captions
from embed.clip.model import Clip, load_clip

CAPTIONS = SHARED / "prompts" / "coco_captions_val2017.json"
MODEL, SEED = "ViT-B-32", 0


def captions_or_made_up(path: Path) -> tuple[str, list[str]]:
    """COCO's captions in a seeded order, or made-up ones where the file is absent; with their label."""
    rng = np.random.default_rng(SEED)
    if path.exists():
        found = [annotation["caption"] for annotation in json.loads(path.read_text())["annotations"]]
        return "COCO val2017", [found[i] for i in rng.permutation(len(found))]
    words = "man woman dog cat street table red blue large small holding riding sitting near on with of the in"
    lengths = rng.integers(6, 16, 25_000)
    return "made up", ["A " + " ".join(rng.choice(words.split(), n)) + "." for n in lengths]


def clip_of(folder: Path, precision: Any) -> Clip:
    tables = {
        "run": {"name": "benchmark", "folder": str(folder), "seed": SEED},
        "dataset": {"scenes": {"samples": 1}},
        "clip": {"source": "random", "model": MODEL},
    }
    return load_clip(Run(parse_config(tables, "benchmark")), precision=precision)


@torch.inference_mode()
def straightforward(model: Any, tokenizer: Any, captions: Sequence[str], batch: int) -> Tensor:
    """The loop that one would write."""
    found = [
        model.encode_text(tokenizer(list(captions[i : i + batch])), normalize=True)
        for i in range(0, len(captions), batch)
    ]
    return torch.cat(found)


def ours(clip: Clip, captions: Sequence[str], batch: int) -> Tensor:
    return normalize(encode_captions(clip, captions, batch).raw, dim=-1)


def compare(clips: dict[str, Clip], captions: list[str], rounds: int, batch: int) -> dict[str, Any]:
    """Rates (captions/s) on the same captions, in chunks by turns, so that what else the machine does hits all of them."""
    model, tokenizer = clips["fp32"].model, open_clip.get_tokenizer(MODEL)
    sides: dict[str, Callable[[list[str]], Tensor]] = {
        "peer, batches of 64": lambda some: straightforward(model, tokenizer, some, 64),
        "peer, batches of 256": lambda some: straightforward(model, tokenizer, some, 256),
        "fp32": lambda some: ours(clips["fp32"], some, batch),
        "bf16": lambda some: ours(clips["bf16"], some, batch),
    }
    for encode in sides.values():
        encode(captions[:16])
    found: dict[str, list[Tensor]] = {name: [] for name in sides}
    seconds, cpu = dict.fromkeys(sides, 0.0), dict.fromkeys(sides, 0.0)
    size = -(-len(captions) // rounds)
    for start in range(0, len(captions), size):
        for name, encode in sides.items():
            seconds[name] -= time.perf_counter()
            cpu[name] -= time.process_time()
            found[name].append(encode(captions[start : start + size]))
            seconds[name] += time.perf_counter()
            cpu[name] += time.process_time()
    vectors = {name: torch.cat(parts).double() for name, parts in found.items()}
    truth = vectors["peer, batches of 64"]
    return {
        "rates": {name: len(captions) / spent for name, spent in seconds.items()},
        "cpu": {name: spent / len(captions) * 1000 for name, spent in cpu.items()},
        "difference": float((vectors["fp32"] - truth).abs().max()),
        "cosine": float((vectors["bf16"] * truth).sum(dim=1).div(truth.norm(dim=1)).min()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few captions, under a minute")
    parser.add_argument("--n", type=int, help="captions that both sides encode")
    parser.add_argument("--batch", type=int, default=64, help="ours: places of a batch, in captions of 77")
    arguments = parser.parse_args()
    label, captions = captions_or_made_up(CAPTIONS)
    n = arguments.n or (96 if arguments.quick else 5000)
    folder = Path("/nowhere")  # nothing is written
    clips = {precision: clip_of(folder, precision) for precision in ("fp32", "bf16")}
    found = compare(clips, captions[:n], 1 if n < 2000 else n // 1000, arguments.batch)
    rates, cpu = found["rates"], found["cpu"]
    peer, peer_cpu = (
        choose(found[what][name] for name in rates if name.startswith("peer"))
        for choose, what in ((max, "rates"), (min, "cpu"))
    )
    print(
        f"{label} captions through {MODEL} with random weights, {n:,} of {len(captions):,}, {torch.get_num_threads()} threads:"
    )
    for name, rate in rates.items():
        print(
            f"  {name:<22} {rate:8.1f} captions/s {rate / peer:6.2f}x   {cpu[name]:7.2f} ms CPU a caption {peer_cpu / cpu[name]:6.2f}x"
        )
    print(
        f"  fp32: largest difference of unit vectors {found['difference']:.1e}; bf16: smallest cosine {found['cosine']:.6f}"
    )
    assert found["difference"] <= 1e-5 and found["cosine"] >= 0.99995, "ours differs from encode_text"
    result = {
        "name": "encode_text", "unit": "captions/s", "ours": rates["fp32"], "peer": peer, "ratio": rates["fp32"] / peer,
        "n": n, "captions": label, "bf16": rates["bf16"], "bf16_ratio": rates["bf16"] / peer,
        "cpu_ratio": peer_cpu / cpu["fp32"], "bf16_cpu_ratio": peer_cpu / cpu["bf16"],
        "max_difference": found["difference"], "bf16_min_cosine": found["cosine"], "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
