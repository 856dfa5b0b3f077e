"""`python -m embed ...`: what is printed, what is refused in one line, and the exit status."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from data.pipeline.cli import front_door
from data.pipeline.run import Run
from embed.__main__ import COMMANDS
from embed.encoding.throughput import LOG_FILE, sentence, summary
from tests.conftest import save_tiny_clip


@pytest.fixture
def config(own_run: Run, tmp_path: Path) -> Path:
    """The run's config file; the run folder has another name than when it was made."""
    (own_run.folder / "config.toml").unlink()
    Run.open(own_run.config)
    path = tmp_path / "c.toml"
    path.write_text(own_run.config.to_toml())
    return path


def embed(config: Path, command: str, *arguments: str) -> int:
    return front_door("embed", "", COMMANDS, [command, "--config", str(config), *arguments])


def test_build_prints_what_was_made_and_how_fast(
    own_run: Run, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(own_run.embeddings.folder)
    assert embed(config, "build") == 0
    printed = capsys.readouterr().out.splitlines()
    rate = r"[\d.]+ images/s and [\d.]+ distinct captions/s over [\d.]+ s \(cpu\); the encoder waited [\d.]+% of its time for images, "
    assert re.fullmatch(rate + r"writing took [\d.]+% of encoding", printed[-3]), printed
    assert re.fullmatch(
        r"embedded 30 images and \d+ distinct captions, 60 pairs, 0 captions truncated: \S+embeddings", printed[-2]
    )
    assert re.match(
        r"cosine of pairs -?0.\d+ \(shuffled -?0.\d+\), effective dimensions: image [\d.]+ of 32, text [\d.]+ of 32; ",
        printed[-1],
    )
    assert embed(config, "build") == 0  # nothing is made, so nothing is measured
    assert "images/s" not in capsys.readouterr().out
    (line,) = (own_run.logs / LOG_FILE).read_text().splitlines()[-1:]
    facts = json.loads(line)
    assert facts["parts"] == 3 and facts["images"] == 30 and facts["devices"] == ["cpu"]
    assert 0 <= facts["waiting_share"] <= 1 and facts["writing_share"] > 0


def test_rates_and_shares_are_of_what_they_say() -> None:
    part = {
        "images": 10, "captions": 20, "threads": 2, "device": "cpu", "loading": 5.0, "encoding": 4.0, "waited": 2.0, "writing": 0.5,
        "seconds": 15.5, "whole": 16.0,
    }  # fmt: skip
    facts = summary([part, part | {"device": "cuda", "whole": None, "waited": 0.0}], 20.0)
    assert facts["images_per_second"] == 1 and facts["captions_per_second"] == 2
    assert facts["waiting_share"] == pytest.approx(2 / 16)  # of two threads' 4 seconds in each part
    assert facts["writing_share"] == pytest.approx((0.5 + 0.5 + 0.5) / (10 + 10))  # loading is no encoding
    assert sentence(facts) == (
        "1.0 images/s and 2.0 distinct captions/s over 20.0 s (cpu and cuda); the encoder waited 12.5% of its time for images, "
        "writing took 7.50% of encoding"
    )


def test_verify_says_what_agrees_or_fails(own_run: Run, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(config, "verify", "--rows", "5") == 0
    assert capsys.readouterr().out.endswith("parts, keys, hashes, lengths, scores, probes and re-encoded rows agree\n")
    path = own_run.embeddings.folder / "00001.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    assert embed(config, "verify") == 1
    problem, error = capsys.readouterr().err.splitlines()
    assert problem.startswith(f"{path}: ") and "recorded" in problem
    assert error.startswith("error: ") and "1 problem, told above; `make embeddings` makes a part again" in error
    assert embed(config, "verify", "--rows", "-3") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_show_draws_and_prints(own_run: Run, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(config, "show", "--caption", "a red ring / “x”", "--n", "3") == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6 and printed[-1] == f"drawn: {own_run.folder / 'show' / 'nearest-caption-a-red-ring-x.png'}"
    assert (
        embed(
            config,
            "show",
            "--key",
            "000000003",
            "--out",
            str(tmp_path / "here.png"),
            "--view",
            "train",
            "--split",
            "train",
        )
        == 0
    )
    assert (tmp_path / "here.png").stat().st_size > 10_000
    assert embed(config, "show", "--image", str(tmp_path / "here.png"), "--n", "1") == 0
    capsys.readouterr()
    for arguments, message in (
        ((), "one of the arguments --caption --image --key is required"),
        (("--key", "x", "--caption", "y"), "not allowed with argument"),
        (("--caption", "x", "--n", "0"), "--n is 0; at least 1 image is shown"),
        (("--image", str(tmp_path)), "cannot be read as an image"),
        (("--caption", "x", "--out", str(tmp_path)), f"--out: {tmp_path} is a folder; name a file"),
        (
            ("--caption", "x", "--out", f"{config}/x.png"),
            f"--out: {config} is a file, so {config}/x.png cannot be made",
        ),
        (("--caption", "x", "--view", "nope"), "has no view 'nope'; it has base, train"),
    ):
        assert embed(config, "show", *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and message in error, error


def test_export_says_how_many(own_run: Run, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(config, "export", "--format", "npy", "--out", str(tmp_path / "out"), "--split", "val") == 0
    assert re.search(r"exported [1-9]\d? pairs: \S+out$", capsys.readouterr().out)
    assert json.loads((tmp_path / "out/_export.json").read_bytes())["split"] == "val"
    assert embed(config, "export", "--format", "npy", "--out", str(tmp_path / "out")) == 2
    assert embed(config, "export", "--format", "csv", "--out", str(tmp_path / "other")) == 2
    assert "invalid choice" in capsys.readouterr().err


def test_other_settings_of_the_encoder_are_refused_by_name(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for override in ("embeddings.precision=bf16", "embeddings.batch=7", "embeddings.reduced_decode=true"):
        assert embed(config, "build", override) == 2
        error, name = capsys.readouterr().err, override.split("=")[0]
        assert f"{name} was " in error and "delete" in error and error.count("\n") == 1
    assert embed(config, "build", "embeddings.threads=3", "embeddings.decode_threads=2") == 0


def test_what_must_be_there_first_is_named(own_run: Run, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(own_run.embeddings.folder)
    for command, arguments in (
        ("verify", ()),
        ("scores", ()),
        ("show", ("--key", "x")),
        ("export", ("--format", "npy", "--out", "x")),
    ):
        assert embed(config, command, *arguments) == 2
        assert "embeddings does not exist; run `make embeddings` first" in capsys.readouterr().err
    shutil.rmtree(own_run.dataset.folder)
    assert embed(config, "build") == 2
    assert "run `make dataset` first" in capsys.readouterr().err


def test_vectors_of_two_clips_are_not_compared(
    own_run: Run, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    save_tiny_clip(tmp_path / "tiny-clip", seed=1)
    for query in (("--caption", "a red ring"), ("--image", str(tmp_path / "red.png"))):
        assert embed(config, "show", *query) == 2
        error = capsys.readouterr().err
        assert "not with the one in use" in error and "cannot be compared" in error and error.count("\n") == 1
    assert embed(config, "show", "--key", "000000003") == 0  # stored vectors among themselves
