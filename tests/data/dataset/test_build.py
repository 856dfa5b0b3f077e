"""The dataset stage as a whole: counts add up, bytes repeat, kills resume, sources and views keep their promises."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.dataset.build import build_dataset, require_stored
from data.dataset.ledger import read_ledger
from data.dataset.plan import read_plan
from data.dataset.shards import ShardReader, read_shard
from data.pipeline.artifacts import canonical_json
from data.pipeline.errors import DiskFull, UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.reports.funnel import draw_funnel, funnel_rows, funnel_text
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.sources.candidates import Candidate
from data.sources.scene_world import draw, scene
from data.sources.settings import SplitSettings
from data.views.build import build_base_view
from tests.conftest import REPOSITORY, exit_code_with_fault, make_config, tree_bytes
from tests.data.made_dataset import plan_table


def build_view(run: Run) -> None:
    """Scores and the view `base`."""
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.open(make_config(tmp_path_factory.mktemp("run")))
    build_dataset(run, InProcess())
    build_view(run)
    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two captioned images, a copy, a broken file, a missing file, and an image nobody captioned."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png", "lonely.png"):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(root / name)
    (root / "copy.png").write_bytes((root / "a.png").read_bytes())
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    rows = [
        "a.png,one",
        "a.png,two words",
        "a.png,one",
        "sub/b.png,<script>alert(1)</script>",
        "copy.png,a copy",
        "broken.jpg,x",
        "gone.jpg,y",
        "../x.jpg,z",
    ]
    (root / "captions.csv").write_text("file,caption\n" + "\n".join(rows) + "\n")
    return root


def folder_config(tmp_path: Path, photos: Path, **dataset: Any) -> Any:
    return make_config(tmp_path, dataset={"folder": {"path": str(photos)}, "samples_per_shard": 3, **dataset})


def test_scenes_are_stored_with_their_truth(run: Run) -> None:
    shards = ShardReader(run.dataset)
    assert len(shards.keys()) == 30
    for index in (0, 17, 29):
        key = f"{index:09d}"
        meta = shards.meta(key)
        world = scene(3, index)
        assert meta["attributes"]["objects"] == world.attributes()["objects"]
        assert len(meta["captions"]) == len(meta["attributes"]["named"]) == 2
        assert (shards.image(key) == np.asarray(draw(world, 32))).all()  # png of equal size: the very pixels


def test_stock_webdataset_reads_the_shards(run: Run) -> None:
    import webdataset as wds

    url = str(run.dataset.folder / "shards" / "00001.tar")
    samples = list(wds.WebDataset(url, shardshuffle=False).decode("rgb8"))
    ours = list(read_shard(Path(url)))
    assert [s["__key__"] for s in samples] == [s.key for s in ours] == [f"{i:09d}" for i in range(10, 20)]
    assert samples[0]["png"].shape == (32, 32, 3)
    assert samples[0]["txt"] == ours[0].meta["captions"][0]
    assert samples[0]["json"]["split"] in ("train", "val", "test")


def test_a_shard_is_the_tar_that_tarfile_writes(run: Run, tmp_path: Path) -> None:
    """The writer's own headers against the standard library's, also where a record is filled exactly."""
    import io
    import tarfile

    from data.dataset.shards import Sample, ShardWriter

    for n, size in ((0, 1), (1, 512), (3, 10_239), (9, 10_240 * 3 - 512 * 3), (20, 77_777)):
        samples = [Sample(f"{i:09d}", bytes([i]) * (size + i), "jpg", {"captions": ["one\u00e9"]}) for i in range(n)]
        theirs = io.BytesIO()
        with (
            ShardWriter(tmp_path / "ours.tar") as ours,
            tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for sample in samples:
                ours.write(sample)
                caption = sample.meta["captions"][0].encode()
                for suffix, content in (("jpg", sample.image), ("json", canonical_json(sample.meta)), ("txt", caption)):
                    member = tarfile.TarInfo(f"{sample.key}.{suffix}")
                    member.size, member.mode = len(content), 0o644
                    tar.addfile(member, io.BytesIO(content))
        assert (tmp_path / "ours.tar").read_bytes() == theirs.getvalue()
        assert [s.key for s in read_shard(tmp_path / "ours.tar")] == [s.key for s in samples]


def test_workers_do_not_change_a_byte(run: Run, tmp_path: Path, executor: Any) -> None:
    other = Run.open(make_config(tmp_path))
    build_dataset(other, executor)
    assert tree_bytes(other.dataset.folder) == tree_bytes(run.dataset.folder)


def build(folder: Path) -> None:
    build_dataset(Run.open(make_config(folder)), InProcess())


@pytest.mark.parametrize(
    "fault", ["source", "plan", "attempt@00001", "ledger@00001", "shards@00000", "receipt@00002", "manifest"]
)
def test_sigkill_then_the_same_command_gives_the_same_bytes(run: Run, tmp_path: Path, fault: str) -> None:
    assert exit_code_with_fault(fault, build, tmp_path) == -signal.SIGKILL
    assert not Run(make_config(tmp_path)).dataset.is_complete()
    build(tmp_path)
    assert tree_bytes(tmp_path / "t" / "dataset") == tree_bytes(run.dataset.folder)


def test_the_command_itself_resumes_with_workers(run: Run, tmp_path: Path) -> None:
    """Once through the front door, with a worker killed in the middle of a part: the driver reports it and the rest stands."""
    config = tmp_path / "c.toml"
    config.write_text(make_config(tmp_path, cluster={"workers": 2}).to_toml())
    command = [sys.executable, "-m", "data", "build", "--config", str(config)]
    killed = subprocess.run(
        command, env=os.environ | {"UNCLIP_FAULT": "ledger@00001"}, capture_output=True, text=True, cwd=REPOSITORY
    )
    assert killed.returncode == 1 and "part 00001: its worker died 3 times" in killed.stderr, killed.stderr
    assert "Traceback" not in killed.stderr and "distributed" not in killed.stderr, killed.stderr
    assert killed.stderr.count("dataset: the worker of part 00001 died; it is made again") == 2
    again = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert again.returncode == 0, again.stderr
    assert tree_bytes(tmp_path / "t" / "dataset") == tree_bytes(run.dataset.folder)


def test_a_full_disk_stops_with_one_line_and_resumes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Run.open(make_config(tmp_path))
    monkeypatch.setenv("UNCLIP_FAULT_ENOSPC", "shards@00001")
    with pytest.raises(DiskFull, match="no space left"):
        build_dataset(other, InProcess())
    monkeypatch.delenv("UNCLIP_FAULT_ENOSPC")
    build_dataset(other, InProcess())
    assert tree_bytes(other.dataset.folder) == tree_bytes(run.dataset.folder)


def test_folder_counts_add_up_with_every_reason(tmp_path: Path, photos: Path) -> None:
    run = Run.open(folder_config(tmp_path, photos))
    build_dataset(run, InProcess())
    build_view(run)
    reasons = {row["source_id"]: row["reason"] for row in read_ledger(run.dataset).to_pylist()}
    assert reasons == {
        "../x.jpg": "path_refused", "a.png": None, "broken.jpg": "decode_error", "copy.png": None, "gone.jpg": "file_missing",
        "lonely.png": "no_caption", "sub/b.png": None,
    }  # fmt: skip
    rows = funnel_rows(run)
    by_step = {(r.step, r.reason): (r.samples, r.pairs) for r in rows}
    assert by_step["planned", None] == (7, 8)
    assert by_step["download", "no_caption"] == (1, 0)
    assert by_step["stored", None] == (3, 5)
    assert by_step["view base", "duplicate_image"] == (None, 1)
    assert by_step["view base", "repeated_caption"] == (None, 1)
    assert by_step["view base", None] == (2, 3)
    text = funnel_text(rows)
    assert "duplicate_image" in text and "no_caption" in text
    assert draw_funnel(rows).axes[0].get_yticklabels()[0].get_text() == "planned"


def test_the_images_that_fail_can_be_all_of_them(tmp_path: Path, photos: Path) -> None:
    run = Run.open(folder_config(tmp_path, photos, image={"min_side": 500}))
    artifact = build_dataset(run, InProcess())
    with pytest.raises(UserError, match="no image was stored: 3 of 7 were dropped as too_small"):
        require_stored(artifact)


def test_unreadable_sources_are_one_line(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.folder.path: cannot read .*/nowhere: No such file"):
        build_dataset(Run(folder_config(tmp_path, tmp_path / "nowhere")), InProcess())
    (photos / "captions.csv").write_text("image,text\na.png,x\n")
    with pytest.raises(UserError, match=r"needed are file,caption; missing: caption, file"):
        build_dataset(Run(folder_config(tmp_path, photos)), InProcess())
    (photos / "captions.csv").unlink()
    with pytest.raises(UserError, match="cannot read .*captions.csv"):
        build_dataset(Run(folder_config(tmp_path, photos)), InProcess())


def test_a_source_that_changed_after_the_plan_is_refused(tmp_path: Path, photos: Path) -> None:
    run = Run.open(folder_config(tmp_path, photos))
    build_dataset(run, InProcess())
    before = tree_bytes(run.dataset.folder)
    with (photos / "captions.csv").open("a") as file:
        file.write("a.png,another caption\n")
    with pytest.raises(
        UserError,
        match=r"plan.parquet is frozen and the source has changed since: .*captions.csv had \d+ bytes, has \d+",
    ):
        build_dataset(run, InProcess())
    assert tree_bytes(run.dataset.folder) == before


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_url_list_is_downloaded(tmp_path: Path, ending: str) -> None:
    """Served by the scenes' own loopback server, which a table may reach only when private hosts are allowed."""
    import pandas as pd

    from data.sources.scenes import scenes_server
    from data.sources.settings import ScenesSettings

    with scenes_server(ScenesSettings(samples=3, side=16)) as address:
        rows = [(f"http://{address}/0/{i % 3}.png", f"caption {i}") for i in range(6)] + [
            ("", "no url"),
            (f"http://{address}/nothing", "404"),
            ("file:///etc/passwd", "x"),
        ]
        frame = pd.DataFrame(rows, columns=["link", "TEXT"])
        path = tmp_path / f"list.{ending}"
        writers = {
            "csv": lambda: frame.to_csv(path, index=False),
            "tsv": lambda: frame.to_csv(path, sep="\t", index=False),
            "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
            "parquet": lambda: frame.to_parquet(path),
        }
        writers[ending]()
        table = {
            "table": {"path": str(path), "url": "link", "caption": "TEXT"},
            "fetch": {"allow_private_hosts": True, "attempts": 1},
        }
        run = Run.open(make_config(tmp_path, dataset=table))
        counts = build_dataset(run, InProcess()).manifest()["counts"]
        refused = Run.open(make_config(tmp_path / "refused", dataset=table | {"fetch": {"attempts": 1}}))
        assert build_dataset(refused, InProcess()).manifest()["counts"]["dropped_host_refused_samples"] == 4
    assert (counts["planned_samples"], counts["planned_pairs"]) == (6, 9)
    assert (counts["stored_samples"], counts["stored_pairs"]) == (3, 6)
    assert (counts["dropped_bad_url_samples"], counts["dropped_http_4xx_samples"]) == (2, 1)


def test_keys_do_not_depend_on_shard_size(run: Run) -> None:
    candidates = [Candidate(f"id{i}", f"http://h/{i}", ("c",)) for i in range(25)]
    tables = [plan_table(candidates, size, SplitSettings(), 0) for size in (4, 25)]
    assert tables[0]["key"].equals(tables[1]["key"])
    assert tables[0]["split"].equals(tables[1]["split"])
    assert read_plan(run.dataset.folder, 2)["key"].to_pylist() == [f"{i:09d}" for i in range(20, 30)]


def test_status_says_what_comes_next(run: Run) -> None:
    from data.reports.status import next_command, run_status

    found = run_status(run)
    statuses = {s.name: s.state for s in found}
    assert (statuses["dataset"], statuses["views/base"], statuses["embeddings"]) == ("complete", "complete", "missing")
    assert next_command(found) == "make embeddings"


def test_manifest_and_receipts_hold_no_volatile_fact(run: Run) -> None:
    text = (run.dataset.folder / "manifest.json").read_text() + (run.dataset.folder / "plan.json").read_text()
    text += (run.dataset.folder / "source.json").read_text()
    assert str(run.folder) not in text and "127.0.0.1" not in text
    assert json.loads((run.dataset.folder / "provenance.json").read_text())["libraries"]["img2dataset"]
