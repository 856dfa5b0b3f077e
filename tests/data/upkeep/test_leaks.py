"""Evaluation images that stand in train are found by bytes and by looks, and their training copies dropped."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import SHARED
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.upkeep.leaks import Leak, LeakReport, verify_leaks
from data.views.build import build_base_view, build_train_view
from tests.conftest import make_config
from tests.data.made_dataset import Stored, encoded, make_dataset, photo

PHOTOS = SHARED / "photos" / "images"


def key(number: int) -> str:
    return f"{number:09d}"


def resized(rgb: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).resize((side, side), Image.Resampling.BICUBIC))


def planted() -> list[list[Stored]]:
    """40 images, every fourth for evaluation; then copies of evaluation images in train: bytes, re-encoded, resized, other bytes
    of one original; and copies that are no leak: of training images, and within evaluation."""
    pictures = [photo(100 + n, 128) for n in range(40)]
    splits = ["test" if n % 8 == 0 else "val" if n % 4 == 0 else "train" for n in range(40)]
    rows = [
        Stored(key(n), encoded(rgb), (f"picture {n}",), split)
        for n, (rgb, split) in enumerate(zip(pictures, splits, strict=True))
    ]
    copies = {
        50: (encoded(pictures[0]), "train", None), 51: (encoded(pictures[4], "JPEG", quality=75), "train", None),
        52: (encoded(resized(pictures[8], 64)), "train", None), 53: (encoded(photo(999)), "train", encoded(pictures[12])),
        54: (encoded(pictures[1], "JPEG", quality=75), "train", None), 55: (encoded(pictures[16]), "val", None),
    }  # fmt: skip
    rows += [
        Stored(key(n), image, (f"copy {n}",), split, original=original)
        for n, (image, split, original) in copies.items()
    ]
    return [rows[:23], rows[23:]]


LEAKS = {key(50): (key(0), "bytes"), key(51): (key(4), "near"), key(52): (key(8), "near"), key(53): (key(12), "bytes")}


def viewed(folder: Path, **base: Any) -> Run:
    run = Run.open(make_config(folder, views={"base": base}))
    make_dataset(run, planted())
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())
    return run


def test_leaks_are_reported_where_they_stay(tmp_path: Path) -> None:
    run = viewed(tmp_path, drop_leaks=False, drop_duplicates=False)
    report = verify_leaks(run)
    assert {leak.key: (leak.eval_key, leak.by) for leak in report.leaks} == LEAKS
    assert (report.view, report.training, report.evaluation, report.dropped) == ("base", 35, 11, 0)
    assert f"{key(51)} is val image {key(4)} (near)" in report.text()
    build_train_view(run, InProcess())
    assert verify_leaks(run).view == "train" and len(verify_leaks(run).leaks) == 4


def test_the_command_reports_leaks_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes and near copies, as a user sees them; and that all is well once the rule is on."""
    from data.__main__ import COMMANDS
    from data.pipeline.cli import front_door

    run = viewed(tmp_path, drop_leaks=False, drop_duplicates=False)

    def verify() -> tuple[int, str, str]:
        capsys.readouterr()
        status = front_door("data", "", COMMANDS, ["verify", "--leaks", "--config", str(run.folder / "config.toml")])
        said = capsys.readouterr()
        return status, said.out, said.err

    status, out, err = verify()
    assert status == 1 and "evaluation images that stand in the training data: 4 training copies" in out
    for copy, (image, by) in LEAKS.items():
        assert f"  {copy} is " in out and f" image {image} ({by})" in out
    assert err.startswith(
        "error: 4 training copies of evaluation images are trained on; set views.base.drop_leaks = true"
    )
    run = viewed(tmp_path / "mended")
    assert verify()[0] == 0


def test_leaks_are_dropped_and_counted(tmp_path: Path) -> None:
    run = viewed(tmp_path)
    report = verify_leaks(run)
    assert (report.leaks, report.dropped, report.training) == ((), 4, 31)
    assert run.view("base").manifest()["counts"]["dropped_copy_of_evaluation_image_pairs"] == 4
    assert "dropped as copies of evaluation images: 4" in report.text()


def test_leaks_are_found_whatever_the_duplicates_say(tmp_path: Path) -> None:
    """Computed anew: scores/duplicates that miss a leak do not hide it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    run = viewed(tmp_path, drop_leaks=False, drop_duplicates=False)
    for path in run.scores("duplicates").folder.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.set_column(5, "eval_copy_of", pa.nulls(len(table), pa.string())), path)
    assert len(verify_leaks(run).leaks) == 4


def test_leaks_need_a_view_and_fresh_scores(tmp_path: Path) -> None:
    run = Run.open(make_config(tmp_path))
    make_dataset(run, planted())
    with pytest.raises(UserError, match="make dataset"):
        verify_leaks(run)
    build_basic_scores(run, InProcess())
    with pytest.raises(UserError, match="views/base does not exist"):
        verify_leaks(run)


def test_a_long_report_is_cut() -> None:
    leaks = tuple(Leak(key(n), key(n + 100), "test", "bytes") for n in range(25))
    text = LeakReport("train", 1000, 100, 3, leaks).text()
    assert text.count("(bytes)") == 20 and text.endswith("and 5 more")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photographs are not here")
def test_copies_of_real_photographs(tmp_path: Path) -> None:
    """40 photographs for evaluation, a re-encoded copy of each at half size in train beside 40 others: all copies, nothing else."""
    pictures = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))[:80]]
    rows = [
        Stored(
            key(n),
            encoded(np.asarray(image.resize((256, 256))), "JPEG", quality=95),
            split="test" if n < 40 else "train",
        )
        for n, image in enumerate(pictures)
    ]
    for n, image in enumerate(pictures[:40]):
        out = io.BytesIO()
        image.resize((image.width // 2, image.height // 2)).save(out, "JPEG", quality=80)
        again = Image.open(out).resize((256, 256))
        rows.append(Stored(key(100 + n), encoded(np.asarray(again), "JPEG", quality=95)))
    run = Run.open(make_config(tmp_path, views={"base": {"drop_leaks": False}}))
    make_dataset(run, [rows])
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())
    found = {leak.key: leak.eval_key for leak in verify_leaks(run).leaks}
    assert set(found.items()) <= {(key(100 + n), key(n)) for n in range(40)}
    assert len(found) >= 39
