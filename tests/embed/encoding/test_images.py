"""Images from a shard to vectors: open_clip's own pixels, in the shard's order, whatever the threads; trouble named."""

import io
import os
import threading
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.nn.functional import normalize

from benchmarks import SHARED
from data.dataset.shards import Sample, ShardWriter
from data.pipeline.errors import UserError
from data.pipeline.settings import ClusterSettings
from embed.clip.model import Clip, load_clip_folder
from embed.encoding import devices, images, threads
from embed.encoding.devices import claim
from embed.encoding.images import DecodedBatches, Preprocess, encode_shard_images, index_shard
from embed.encoding.threads import EncodingThreads, decode_thread_count, encoding_thread_count
from embed.settings import EmbeddingsSettings
from tests.conftest import save_tiny_clip

CPU = torch.device("cpu")
PHOTOS = SHARED / "photos" / "images"
SIZES = ((50, 40), (41, 97), (32, 32), (7, 5), (200, 33), (33, 64))


def encoded(size: tuple[int, int], seed: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    """A picture with structure: noise, enlarged."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode).save(out, form)
    return out.getvalue()


def write_shard(path: Path, contents: Sequence[bytes], hashes: Sequence[str] | None = None) -> Path:
    with ShardWriter(path) as writer:
        for i, content in enumerate(contents):
            stored = hashes[i] if hashes else sha256(content).hexdigest()
            writer.write(Sample(f"{i:09d}", content, "png", {"captions": ["x"], "stored_sha256": stored}))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return load_clip_folder(save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny"), batch=4)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "00000.tar", [encoded(SIZES[i % len(SIZES)], i) for i in range(14)])


CONFIGS: list[dict[str, Any]] = [
    {"size": 32},
    {"size": [32, 32], "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
    {"size": [24, 40]},
    {"size": 32, "resize_mode": "squash"},
    {"size": [24, 40], "resize_mode": "squash"},
    {"size": 32, "resize_mode": "longest", "fill_color": 100},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_pixels_are_open_clips_own_to_the_last_bit(config: dict[str, Any]) -> None:
    theirs, ours = image_transform_v2(PreprocessCfg(**config), is_train=False), Preprocess(config)
    for mode in ("RGB", "L"):
        for seed, size in enumerate(SIZES):
            content = encoded(size, seed, mode=mode)
            expected = theirs(Image.open(io.BytesIO(content)))
            found = ours.normalise(torch.from_numpy(ours.square(content).copy())[None])[0]
            assert found.shape == (3, ours.height, ours.width) and torch.equal(found, expected), (mode, size)


def test_steps_that_open_clip_changed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = images.image_transform_v2

    def other(*arguments: Any, **more: Any) -> Any:
        transform = plain(*arguments, **more)
        transform.transforms.insert(-1, torch.nn.Identity())
        return transform

    monkeypatch.setattr(images, "image_transform_v2", other)
    with pytest.raises(UserError, match="preprocesses by other steps than expected: .*install the pinned version"):
        Preprocess({"size": 32})


def test_vectors_are_open_clips_own_in_the_shards_order(clip: Clip, shard: Path) -> None:
    stored = index_shard(shard)
    assert [s.key for s in stored] == [f"{i:09d}" for i in range(14)]
    with EncodingThreads(1, CPU) as opened:
        raw, timing = encode_shard_images(clip, shard, stored, opened)
    preprocess = open_clip.image_transform(32, is_train=False)
    pixels = torch.stack([preprocess(Image.open(io.BytesIO(encoded(SIZES[i % len(SIZES)], i)))) for i in range(14)])
    with torch.no_grad():
        expected = clip.model.encode_image(pixels, normalize=True)
    assert raw.dtype == torch.float32 and (normalize(raw, dim=1) - expected).abs().max() < 1e-5
    assert (expected[0] - expected[6]).abs().max() > 1e-5  # images are told apart
    assert timing.images == 14 and 0 <= timing.waited <= timing.seconds


def test_encoding_and_decode_threads_change_no_byte(clip: Clip, shard: Path) -> None:
    stored = index_shard(shard)
    found = []
    for encoding, decoding in ((1, 1), (2, 1), (3, 4)):
        with EncodingThreads(encoding, CPU) as opened:
            found.append(encode_shard_images(clip, shard, stored, opened, decoding)[0])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_shard_without_samples_is_no_trouble(clip: Clip, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "empty.tar", [])
    with EncodingThreads(2, CPU) as opened:
        raw, timing = encode_shard_images(clip, path, index_shard(path), opened)
    assert raw.shape == (0, 32) and timing.images == 0


def test_few_batches_are_held_ahead_of_the_encoder(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the encoder is: the batches that it holds, and `ahead` more."""
    decoded: list[int] = []
    square = Preprocess.square

    def counted(self: Preprocess, content: bytes) -> Any:
        decoded.append(1)
        return square(self, content)

    monkeypatch.setattr(Preprocess, "square", counted)
    with DecodedBatches(shard, index_shard(shard), Preprocess({"size": 32}), 2, 2, ahead=2) as batches:
        for taken in range(1, 4):
            next(batches)
            deadline = time.monotonic() + 10
            while len(decoded) < 2 * (taken + 2) and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.05)
            assert len(decoded) == 2 * (taken + 2)


def test_decoding_goes_on_while_the_encoder_works(clip: Clip, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch is encoded only after the second is decoded: a loop of decode, encode, decode would wait for ever."""
    second, square, count = threading.Event(), Preprocess.square, [0]

    def counted(self: Preprocess, content: bytes) -> Any:
        found = square(self, content)
        count[0] += 1
        if count[0] == 8:
            second.set()
        return found

    seen: list[bool] = []
    encode = Clip.encode_pixels

    def waiting(self: Clip, pixels: torch.Tensor) -> torch.Tensor:
        seen.append(second.wait(20))
        return encode(self, pixels)

    monkeypatch.setattr(Preprocess, "square", counted)
    monkeypatch.setattr(Clip, "encode_pixels", waiting)
    with EncodingThreads(1, CPU) as opened:
        encode_shard_images(clip, shard, index_shard(shard), opened)
    assert seen == [True] * 4


def test_waiting_for_images_is_told(clip: Clip, shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square = Preprocess.square

    def slow(self: Preprocess, content: bytes) -> Any:
        time.sleep(0.05)
        return square(self, content)

    monkeypatch.setattr(Preprocess, "square", slow)
    with EncodingThreads(1, CPU) as opened:
        timing = encode_shard_images(clip, shard, index_shard(shard), opened)[1]
    assert timing.waited > 0.3 and timing.waited > 0.5 * timing.seconds


def test_bytes_that_are_not_those_of_their_hash_are_named(clip: Clip, tmp_path: Path) -> None:
    contents = [encoded((40, 40), i) for i in range(3)]
    hashes = [sha256(content).hexdigest() for content in contents]
    path = write_shard(tmp_path / "00000.tar", contents, [hashes[0], hashes[1], hashes[0]])
    with (
        pytest.raises(UserError, match="00000.tar: the image of sample 000000002 differs from the hash stored beside it"),
        EncodingThreads(2, CPU) as opened,
    ):  # fmt: skip
        encode_shard_images(clip, path, index_shard(path), opened)


def test_an_image_that_cannot_be_decoded_is_named(clip: Clip, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "00000.tar", [encoded((40, 40), 0), b"no image"])
    with (
        pytest.raises(UserError, match="the image of sample 000000001 cannot be decoded: cannot identify image file"),
        EncodingThreads(1, CPU) as opened,
    ):
        encode_shard_images(clip, path, index_shard(path), opened)


def test_damaged_tars_are_named(shard: Path, tmp_path: Path) -> None:
    content = shard.read_bytes()
    broken = tmp_path / "broken.tar"
    broken.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"broken.tar.*run `python -m data verify`"):
        index_shard(broken)
    broken.write_bytes(b"x" * 10240)
    with pytest.raises(UserError, match=r"broken.tar is damaged"):
        index_shard(broken)
    broken.unlink()
    with pytest.raises(UserError, match=r"broken.tar is missing; run `python -m data verify`"):
        index_shard(broken)


def test_reduced_decoding_keeps_size_and_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG of odd sides at half scale is rounded up to whole pixels; its crop must stay where the full decode has it."""
    for config in CONFIGS:
        full, reduced = Preprocess(config), Preprocess(config, True)
        assert Preprocess({"size": 8}, True).resized_to(97, 41) == (18, 8)
        for size in ((401, 259), (257, 257), (211, 517)):
            content = encoded(size, 3, "JPEG")
            ours, expected = reduced.square(content).astype(float), full.square(content).astype(float)
            assert ours.shape == expected.shape
            assert 0 < np.sqrt(((ours - expected) ** 2).mean()) < images.REDUCED_LEVELS, (config, size)
            resized = full._resize(Image.open(io.BytesIO(content)))
            assert reduced.resized_to(*size) == resized.size


def test_reduced_decoding_leaves_small_images_and_other_formats_alone() -> None:
    """Less than twice the size asked for would remain, or there is no reduced scale."""
    full, reduced = Preprocess({"size": 32}), Preprocess({"size": 32}, True)
    for content in (encoded((127, 300), 0, "JPEG"), encoded((20, 30), 1, "JPEG"), encoded((400, 400), 2)):
        assert (reduced.square(content) == full.square(content)).all()
    assert (reduced.square(encoded((128, 300), 0, "JPEG")) != full.square(encoded((128, 300), 0, "JPEG"))).any()


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photographs are not here")
def test_reduced_decoding_of_photographs_stays_within_its_tolerance() -> None:
    full, reduced, worst = Preprocess({"size": 64}), Preprocess({"size": 64}, True), 0.0
    changed = 0
    for path in sorted(PHOTOS.glob("*.jpg"))[::2]:
        content = path.read_bytes()
        difference = reduced.square(content).astype(float) - full.square(content)
        changed += bool(difference.any())
        worst = max(worst, float(np.sqrt((difference**2).mean())))
    assert changed > 40 and 0.5 < worst < images.REDUCED_LEVELS


def test_how_many_encoding_and_decode_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 8)
    auto, gpu = EmbeddingsSettings(), torch.device("cuda")
    assert [encoding_thread_count(auto, ClusterSettings(workers=w), CPU) for w in (0, 1, 4, 8, 20)] == [2, 2, 2, 1, 1]
    assert encoding_thread_count(auto, ClusterSettings(address="tcp://x:1"), CPU) == 1
    assert encoding_thread_count(auto, ClusterSettings(workers=8), gpu) == 2
    assert encoding_thread_count(EmbeddingsSettings(threads=5), ClusterSettings(workers=8), CPU) == 5
    assert [decode_thread_count(auto, ClusterSettings(workers=w), d) for w, d in ((2, CPU), (2, gpu), (8, gpu))] == [
        1,
        4,
        2,
    ]
    assert decode_thread_count(EmbeddingsSettings(decode_threads=3), ClusterSettings(workers=2), CPU) == 3


def test_workers_of_one_machine_take_one_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, by two sets of locks: flock tells open files apart, not processes."""
    ours: dict[str, int] = {}
    theirs: dict[str, int] = {}
    monkeypatch.setattr(devices, "_claimed", ours)
    assert claim(["a", "b"], tmp_path / "gpus") == 0 == claim(["a", "b"], tmp_path / "gpus")
    monkeypatch.setattr(devices, "_claimed", theirs)
    assert claim(["a", "b"], tmp_path / "gpus") == 1
    monkeypatch.setattr(devices, "_claimed", {})
    with pytest.warns(UserWarning, match="all 2 GPUs are in use by other workers; cluster.workers = 2 is faster"):
        assert claim(["a", "b"], tmp_path / "gpus") in (0, 1)
    os.close(ours["a"])  # as when its process ends
    monkeypatch.setattr(devices, "_claimed", {})
    assert claim(["a", "b"], tmp_path / "gpus") == 0
    for descriptor in (*theirs.values(), *devices._claimed.values()):
        os.close(descriptor)


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose_device("auto") == devices.choose_device("cpu") == CPU
    with pytest.raises(UserError, match="embeddings.device = 'cuda', but this process sees no GPU"):
        devices.choose_device("cuda")


def test_encoding_threads_leave_torchs_threads_as_they_were(clip: Clip, shard: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with EncodingThreads(2, CPU) as opened:
            assert opened.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
