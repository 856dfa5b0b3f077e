"""The plan: streamed, frozen, refused when its inputs changed; keys and splits depend on nothing but the images."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset.plan import (
    PLAN_SCHEMA,
    FrozenPlan,
    PlanWriter,
    freeze_plan,
    plan_digest,
    read_frozen,
    read_plan,
    retry_path,
)
from data.dataset.settings import DatasetSettings
from data.dataset.splits import draw_split
from data.pipeline.errors import DiskFull, UserError
from data.sources.candidates import Candidate
from data.sources.settings import SplitSettings
from data.sources.source import open_source
from tests.conftest import tree_bytes
from tests.data.made_dataset import plan_table


def write_list(path: Path, rows: int = 25) -> Path:
    lines = [f"http://h/{i},caption {i}" for i in range(rows)] + ["http://H/3#x,again"]
    path.write_text("url,caption\n" + "\n".join(lines) + "\n")
    return path


def settings_of(path: Path, **more: Any) -> DatasetSettings:
    given = {"table": {"path": str(path)}, "samples_per_shard": 10, "split": {"val": 0.2, "test": 0.2}} | more
    return DatasetSettings.model_validate_json(json.dumps(given))


def freeze(folder: Path, settings: DatasetSettings, seed: int = 0) -> FrozenPlan:
    folder.mkdir(exist_ok=True)
    return freeze_plan(folder, open_source(settings, seed), settings, seed)


class Listed:
    """A source of given candidates."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self.listed, self.notes = candidates, Counter[str]()

    def facts(self) -> dict[str, Any]:
        return {}

    def candidates(self) -> Iterator[Candidate]:
        return iter(self.listed)

    def serving(self) -> AbstractContextManager[dict[str, Any]]:
        raise AssertionError


def test_a_row_group_is_a_shard(tmp_path: Path) -> None:
    frozen = freeze(tmp_path / "d", settings_of(write_list(tmp_path / "l.csv")))
    assert frozen.rows == (10, 10, 5) and frozen.totals == {"samples": 25, "pairs": 26, "excluded_samples": 0}
    whole = read_plan(frozen.folder)
    assert whole.schema.equals(PLAN_SCHEMA) and whole["key"].to_pylist() == [f"{i:09d}" for i in range(25)]
    for shard, digest in enumerate(frozen.shards):
        rows = read_plan(frozen.folder, shard)
        assert rows.equals(whole.slice(shard * 10, 10)) and set(rows["shard"].to_pylist()) == {shard}
        assert plan_digest(rows) == digest
    assert whole["captions"][3].as_py() == ["caption 3", "again"]
    assert read_plan(frozen.folder, 1, ["key", "split"]).column_names == ["key", "split"]
    assert read_frozen(frozen.folder) == frozen and read_frozen(tmp_path) is None


def test_retries_lie_beside_the_plan(tmp_path: Path) -> None:
    frozen = freeze(tmp_path / "d", settings_of(write_list(tmp_path / "l.csv")))
    rows = read_plan(frozen.folder).slice(3, 2)
    with PlanWriter(retry_path(frozen.folder, 3)) as writer:
        digest = writer.write(rows)
    assert read_plan(frozen.folder, 3).equals(rows) and digest == plan_digest(rows)
    assert len(read_plan(frozen.folder)) == 25
    with pytest.raises(UserError, match=r"00004.parquet does not exist"):
        read_plan(frozen.folder, 4)
    with pytest.raises(UserError, match=r"plan.parquet does not exist; run `make dataset` first"):
        read_plan(tmp_path)


def test_the_digest_is_of_values_and_of_every_value() -> None:
    rng = np.random.default_rng(0)
    listed = [
        Candidate(f"id{i}", f"http://h/{i}", tuple(f"c{j}é" for j in range(int(rng.integers(4)))), watermark=i / 3 if i % 2 else None,
                  license=None if i % 3 else "CC0", extra={"i": i} if i % 5 else None)
        for i in range(30)
    ]  # fmt: skip
    table = plan_table(listed, 30, SplitSettings(), 0)
    digest = plan_digest(table)
    pieces = pa.concat_tables([table.slice(0, 7), table.slice(7, 1), table.slice(8)])
    assert plan_digest(pieces) == plan_digest(pa.Table.from_pylist(table.to_pylist(), PLAN_SCHEMA)) == digest
    assert plan_digest(pa.concat_tables([table, table]).slice(30)) == digest
    others = set()
    for name in PLAN_SCHEMA.names:
        rows = table.to_pylist()
        first = rows[1][name]
        other = {"captions": ["c0é", "c1", "é"], "shard": 7, "watermark": 0.75}.get(name, "other")
        assert first != other
        rows[1][name] = other
        others.add(plan_digest(pa.Table.from_pylist(rows, PLAN_SCHEMA)))
    rows = table.to_pylist()
    rows[0]["captions"], rows[1]["captions"] = ["ab"], ["c"]
    one = plan_digest(pa.Table.from_pylist(rows, PLAN_SCHEMA))
    rows[0]["captions"], rows[1]["captions"] = ["a"], ["bc"]
    assert len(others | {digest, one, plan_digest(pa.Table.from_pylist(rows, PLAN_SCHEMA))}) == len(PLAN_SCHEMA) + 3


def test_keys_and_splits_do_not_depend_on_shard_size(tmp_path: Path) -> None:
    path = write_list(tmp_path / "l.csv")
    plans = [
        read_plan(freeze(tmp_path / str(n), settings_of(path, samples_per_shard=n)).folder) for n in (1, 4, 25, 1000)
    ]
    for other in plans[1:]:
        assert other.drop(["shard"]).equals(plans[0].drop(["shard"]))


def test_split_follows_the_image_and_the_shares() -> None:
    shares = SplitSettings(val=0.1, test=0.2)
    drawn = [draw_split(f"image-{i}", shares, 0) for i in range(4000)]
    assert abs(drawn.count("test") / 4000 - 0.2) < 0.03 and abs(drawn.count("val") / 4000 - 0.1) < 0.02
    assert drawn != [draw_split(f"image-{i}", shares, 1) for i in range(4000)]
    same = [Candidate(f"tar{i}/x", f"u{i}", ("c",), identity="http://h/x") for i in range(30)]
    assert len(set(plan_table(same, 10, shares, 0)["split"].to_pylist())) == 1
    (own,) = plan_table([Candidate("a", "u", (), split="test", key="000000777")], 10, SplitSettings(), 0).to_pylist()
    assert (own["split"], own["key"]) == ("test", "000000777")


def test_nothing_is_read_again_while_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(write_list(tmp_path / "l.csv"))
    frozen = freeze(tmp_path / "d", settings)
    before = tree_bytes(frozen.folder)
    monkeypatch.setattr("data.sources.table.TableSource.candidates", lambda self: pytest.fail("read again"))
    assert freeze(tmp_path / "d", settings) == frozen
    assert tree_bytes(frozen.folder) == before and set(before) == {"plan.parquet", "source.json"}
    assert str(tmp_path) not in before["source.json"].decode()


def test_a_changed_source_is_planned_anew_until_parts_stand_and_then_refused(tmp_path: Path) -> None:
    path = write_list(tmp_path / "l.csv")
    folder = tmp_path / "d"
    freeze(folder, settings_of(path))
    write_list(path, 26)
    assert freeze(folder, settings_of(path)).totals["samples"] == 26
    (folder / "parts").mkdir()
    (folder / "parts" / "00000.json").write_text("{}")
    before = tree_bytes(folder)
    same_size = path.read_text().replace("caption 1\n", "caption X\n")
    for change, words in (
        (lambda: write_list(path, 27), r"source/files/l.csv had \d+ bytes, has \d+; use another run.name"),
        (
            lambda: path.write_text(same_size),
            r"source/files/l.csv has \d+ bytes as then, but sha256 \w{12} became \w{12}",
        ),
    ):
        change()
        with pytest.raises(UserError, match=words):
            freeze(folder, settings_of(path))
    write_list(path, 26)
    freeze(folder, settings_of(path))
    with pytest.raises(UserError, match=r"seed was 0, is 1"):
        freeze(folder, settings_of(path), seed=1)
    with pytest.raises(UserError, match=r"samples_per_shard was 10, is 5"):
        freeze(folder, settings_of(path, samples_per_shard=5))
    (tmp_path / "out.txt").write_text("http://h/1\n")
    with pytest.raises(UserError, match=r"source/exclusion lists/urls is new"):
        freeze(folder, settings_of(path, exclude={"urls": str(tmp_path / "out.txt")}))
    assert tree_bytes(folder) == before
    (folder / "source.json").unlink()
    with pytest.raises(UserError, match="made by an earlier version"):
        freeze(folder, settings_of(path))


def test_a_changed_folder_names_the_file(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "a.png").write_bytes(b"1234")
    (root / "captions.csv").write_text("file,caption\na.png,x\n")
    settings = DatasetSettings.model_validate({"folder": {"path": str(root)}})
    folder = freeze(tmp_path / "d", settings).folder
    (folder / "parts").mkdir()
    (folder / "parts" / "00000.json").write_text("{}")
    for change, words in (
        (lambda: (root / "a.png").write_bytes(b"12345"), "source/images/a.png had 4 bytes, has 5"),
        (lambda: (root / "b.png").write_bytes(b""), r"source/images/a.png had 4 bytes, has 5 \(and 1 more\)"),
        (lambda: (root / "a.png").unlink(), r"source/images/a.png is missing now \(and 1 more\)"),
    ):
        change()
        with pytest.raises(UserError, match=words):
            freeze(folder, settings)


def test_excluded_candidates_are_planned_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("http://h/3\n")
    settings = settings_of(write_list(tmp_path / "l.csv"), exclude={"urls": str(tmp_path / "out.txt")})
    frozen = freeze(tmp_path / "d", settings)
    assert frozen.totals["excluded_samples"] == 1
    rows = read_plan(frozen.folder, 0).to_pylist()
    assert [row["excluded"] for row in rows] == [None, None, None, "excluded_url"] + [None] * 6


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ([], "the source has no candidates"),
        ([Candidate("a", "u", ()), Candidate("b", "u", ()), Candidate("a", "v", ())], "names the image 'a' twice"),
        ([Candidate("a", "u", (), key="1"), Candidate("b", "u", (), key="1")], "gives the key '1' twice"),
        (
            [Candidate("a", "u", (), key="1"), Candidate("b", "u", ())],
            "gives keys to some images and none to others, such as 'b'",
        ),
    ],
)
def test_unusable_candidates_leave_no_plan(tmp_path: Path, listed: list[Candidate], words: str) -> None:
    for per_shard in (1, 10):
        settings = settings_of(tmp_path, samples_per_shard=per_shard)
        with pytest.raises(UserError, match=words):
            freeze_plan(tmp_path, Listed(listed), settings, 0)
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_full_disk_before_the_plan_is_frozen_is_one_line_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_list(tmp_path / "l.csv")
    freeze(tmp_path / "whole", settings_of(path))
    monkeypatch.setenv("UNCLIP_FAULT_ENOSPC", "source")
    with pytest.raises(DiskFull, match="no space left while writing .*plan.parquet"):
        freeze(tmp_path / "d", settings_of(path))
    assert read_frozen(tmp_path / "d") is None
    monkeypatch.delenv("UNCLIP_FAULT_ENOSPC")
    freeze(tmp_path / "d", settings_of(path))
    assert tree_bytes(tmp_path / "d") == tree_bytes(tmp_path / "whole")


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    folder = freeze(tmp_path / "d", settings_of(write_list(tmp_path / "l.csv"))).folder
    (folder / "plan.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="plan.parquet is damaged"):
        read_plan(folder, 0)
    (folder / "source.json").write_text('{"shards": 5}')
    with pytest.raises(UserError, match="source.json is damaged"):
        read_frozen(folder)


CHILD = """
import sys
from pathlib import Path
from data.dataset.plan import freeze_plan
from data.dataset.settings import DatasetSettings
from data.sources.source import open_source
s = DatasetSettings.model_validate({"table": {"path": sys.argv[1]}})
freeze_plan(Path(sys.argv[2]), open_source(s, 0), s, 0)
print(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    """Peak of a fresh process: 80,000 rows with a kilobyte of caption each may take little more than 2,000 rows do."""
    peaks = []
    for rows in (2_000, 80_000):
        path = tmp_path / f"{rows}.parquet"
        table = pa.table(
            {"url": [f"http://h/{i}" for i in range(rows)], "caption": [f"{i} " + "word " * 200 for i in range(rows)]}
        )
        pq.write_table(table, path, row_group_size=10_000)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path), str(tmp_path / str(rows))],
            capture_output=True,
            text=True,
            env=os.environ,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 60, f"MiB at 2,000 and at 80,000 rows: {peaks}; the captions alone are 80"
