"""How fast the embeddings were made, and how long the encoder waited for data: printed, and kept in `logs/`, outside every digest."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.pipeline.run import Run

LOG_FILE = "embeddings-throughput.jsonl"


@contextmanager
def measured(run: Run) -> Iterator[None]:
    """Print and log what the parts made inside the block took together; nothing when no image was encoded or it failed."""
    folder, log = run.embeddings.folder / "log", run.logs / "embeddings.jsonl"
    before, told = _written(folder), _lines(log)
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    made = [path for path, when in _written(folder).items() if before.get(path) != when]
    parts = [json.loads(path.read_bytes()) for path in made]
    if not any(part["images"] for part in parts):
        return
    whole = {line["part"]: line["seconds"] for line in map(json.loads, _lines(log)[len(told) :]) if "seconds" in line}
    facts = summary([part | {"whole": whole.get(path.stem)} for path, part in zip(made, parts, strict=True)], seconds)
    run.logs.mkdir(parents=True, exist_ok=True)
    with (run.logs / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts | {"time": time.time()}) + "\n")
    print(sentence(facts))


def summary(parts: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """Rates over the wall clock, loading and statistics included. `waiting_share` is of the encoding threads' time at images,
    `writing_share` (Parquet, hashing and publishing) of the workers' time at reading and encoding.

    A part tells `images`, `captions`, `threads`, `device`, and in seconds: `loading` the CLIP, `encoding` its images, `waited` for them
    (all threads together), `writing` Parquet, `seconds` in all, and `whole` with hashing and publishing its files (None: not known).
    """
    images, captions = (sum(part[name] for part in parts) for name in ("images", "captions"))
    encoding = sum(part["encoding"] * part["threads"] for part in parts)
    work = sum(part["seconds"] - part["loading"] - part["writing"] for part in parts)
    writing = sum(part["writing"] + max(0.0, (part["whole"] or 0.0) - part["seconds"]) for part in parts)
    return {
        "parts": len(parts), "seconds": seconds, "images": images, "captions": captions,
        "images_per_second": images / max(seconds, 1e-9), "captions_per_second": captions / max(seconds, 1e-9),
        "waiting_share": sum(part["waited"] for part in parts) / max(encoding, 1e-9),
        "writing_share": writing / max(work, 1e-9),
        "devices": sorted({part["device"] for part in parts}),
    }  # fmt: skip


def sentence(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['images_per_second']:,.1f} images/s and {facts['captions_per_second']:,.1f} distinct captions/s over "
        f"{facts['seconds']:,.1f} s ({' and '.join(facts['devices'])}); the encoder waited {facts['waiting_share']:.1%} of its time "
        f"for images, writing took {facts['writing_share']:.2%} of encoding"
    )


def _written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*.json"))}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
