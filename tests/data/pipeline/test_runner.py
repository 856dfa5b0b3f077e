"""Stages: what is kept, remade and refused; kills at every named boundary leave nothing or a whole part."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.pipeline.artifacts import Artifact, Receipt, publish_bytes
from data.pipeline.errors import Code, DiskFull, StageFailed, UserError
from data.pipeline.executors import InProcess
from data.pipeline.runner import MAX_DEATHS, is_current, run_stage, run_stages
from data.pipeline.stage import Input, PartSpec, Stage
from tests.conftest import tree_bytes


def write_part(spec: PartSpec, attempt: Path) -> dict[str, int]:
    """Two files from its work, and a line in a diary of calls where its work names one."""
    (attempt / "shards").mkdir()
    (attempt / "shards" / f"{spec.name}.txt").write_text(f"{spec.name} {spec.work.get('text', '')}")
    (attempt / "ledger").mkdir()
    (attempt / "ledger" / f"{spec.name}.txt").write_text("ledger")
    (attempt / "log").mkdir()
    (attempt / "log" / f"{spec.name}.txt").write_text(str(os.getpid()))
    if "diary" in spec.work:
        with open(spec.work["diary"], "a") as diary:
            diary.write(spec.name + "\n")
    return {"rows": 2}


def die_or_write(spec: PartSpec, attempt: Path) -> dict[str, int]:
    if spec.work["die"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return write_part(spec, attempt)


def fail_or_write(spec: PartSpec, attempt: Path) -> dict[str, int]:
    if spec.work["fail"]:
        raise ValueError("this part is bad")
    return write_part(spec, attempt)


def full_disk(spec: PartSpec, attempt: Path) -> dict[str, int]:
    raise OSError(errno.ENOSPC, "No space left on device")


def stage(
    folder: Path,
    n: int = 3,
    version: int = 1,
    settings: Any = None,
    inputs: Any = None,
    make: Any = write_part,
    **more: Any,
) -> Stage:
    work = more.pop("work", {})
    parts = [
        PartSpec(f"{i:05d}", (Input("in", (inputs or {}).get(i, "same")),), {**work, "die": i == 1, "fail": i == 1})
        for i in range(n)
    ]
    return Stage("test", version, folder, settings or {"a": {"b": 1}}, parts, make, **more)


def calls(diary: Path) -> list[str]:
    return diary.read_text().split() if diary.exists() else []


def test_a_rerun_makes_nothing_and_changes_no_byte(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    first = run_stage(stage(tmp_path / "a", work={"diary": str(diary)}), InProcess())
    before = tree_bytes(first.folder)
    run_stage(stage(tmp_path / "a", work={"diary": str(diary)}), InProcess())
    assert calls(diary) == ["00000", "00001", "00002"]
    assert tree_bytes(first.folder) == before
    assert first.verify() == []
    assert first.manifest()["counts"] == {"rows": 6}


def test_only_parts_whose_inputs_changed_are_remade(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    artifact = run_stage(stage(tmp_path / "a", work={"diary": str(diary)}), InProcess())
    digest = artifact.digest()
    run_stage(stage(tmp_path / "a", inputs={1: "other"}, work={"diary": str(diary)}), InProcess())
    assert calls(diary)[3:] == ["00001"]
    assert artifact.digest() != digest


def test_a_new_stage_version_remakes_everything_and_fewer_parts_leave_no_files(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    run_stage(stage(tmp_path / "a", work={"diary": str(diary)}), InProcess())
    artifact = run_stage(stage(tmp_path / "a", n=2, version=2, work={"diary": str(diary)}), InProcess())
    assert calls(diary)[3:] == ["00000", "00001"]
    assert not (artifact.folder / "shards" / "00002.txt").exists()
    assert artifact.verify() == []


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    run_stage(stage(tmp_path / "a"), InProcess())
    with pytest.raises(UserError, match=r"was made with a.b = 1, this config says 2; use another run.name, or delete"):
        run_stage(stage(tmp_path / "a", settings={"a": {"b": 2}}), InProcess())


def test_a_precious_stage_refuses_changed_inputs(tmp_path: Path) -> None:
    artifact = run_stage(stage(tmp_path / "a", precious=True), InProcess())
    before = tree_bytes(artifact.folder)
    with pytest.raises(UserError, match="inputs that have changed"):
        run_stage(stage(tmp_path / "a", inputs={0: "other"}, precious=True), InProcess())
    assert tree_bytes(artifact.folder) == before


def test_a_failed_part_is_named_and_the_rest_is_made(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match=r"1 of 3 parts failed.*part 00001: ValueError: this part is bad"):
        run_stage(stage(tmp_path / "a", make=fail_or_write), InProcess(), tmp_path / "logs")
    artifact = Artifact(tmp_path / "a")
    assert not artifact.is_complete()
    assert [artifact.receipt(f"{i:05d}") is not None for i in range(3)] == [True, False, True]
    assert "this part is bad" in (tmp_path / "logs" / "test.jsonl").read_text()
    run_stage(stage(tmp_path / "a"), InProcess())
    assert artifact.verify() == []


def test_a_full_disk_is_one_line_and_resumes(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="no space left while writing .* run the same command again"):
        run_stage(stage(tmp_path / "a", make=full_disk), InProcess())
    assert run_stage(stage(tmp_path / "a"), InProcess()).verify() == []


def test_verify_finds_every_kind_of_damage(tmp_path: Path) -> None:
    artifact = run_stage(stage(tmp_path / "a"), InProcess())
    (artifact.folder / "shards" / "00000.txt").write_text("00000 x")
    (artifact.folder / "shards" / "00001.txt").unlink()
    (artifact.folder / "ledger" / "00002.txt").write_text("LEDGER")
    (artifact.folder / "stray.txt").write_text("?")
    (artifact.folder / "parts" / "00002.json").unlink()
    found = "\n".join(artifact.verify())
    for words in (
        "00000.txt: 7 bytes",
        "00001.txt: missing",
        "00002.txt: content differs",
        "stray.txt: not recorded",
        "00002.json: receipt missing",
    ):
        assert words in found


def test_a_damaged_receipt_is_one_clear_line(tmp_path: Path) -> None:
    artifact = run_stage(stage(tmp_path / "a"), InProcess())
    (artifact.folder / "parts" / "00000.json").write_text("{")
    with pytest.raises(UserError, match=r"receipt is damaged: .*00000.json"):
        run_stage(stage(tmp_path / "a"), InProcess())


def test_a_missing_file_of_a_finished_part_is_remade(tmp_path: Path) -> None:
    artifact = run_stage(stage(tmp_path / "a"), InProcess())
    before = tree_bytes(artifact.folder)
    (artifact.folder / "shards" / "00001.txt").unlink()
    run_stage(stage(tmp_path / "a"), InProcess())
    assert tree_bytes(artifact.folder) == before


def test_two_drivers_on_one_artifact(tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()

    class Slow(InProcess):
        def run(self, *args: Any) -> Any:
            started.set()
            release.wait(10)
            return super().run(*args)

    thread = threading.Thread(target=run_stage, args=(stage(tmp_path / "a"), Slow()))
    thread.start()
    started.wait(10)
    try:
        with pytest.raises(UserError, match="another command is working on"):
            run_stage(stage(tmp_path / "a"), InProcess())
    finally:
        release.set()
        thread.join()
    assert Artifact(tmp_path / "a").is_complete()


def test_dask_gives_the_same_bytes_as_one_process(tmp_path: Path, executor: Any) -> None:
    here = run_stage(stage(tmp_path / "here", n=5), InProcess())
    there = run_stage(stage(tmp_path / "there", n=5), executor)
    assert tree_bytes(here.folder) == tree_bytes(there.folder)
    pids = {(there.folder / "log" / f"{i:05d}.txt").read_text() for i in range(5)}
    assert str(os.getpid()) not in pids


def test_a_part_that_kills_its_worker_is_reported_and_the_rest_is_made(tmp_path: Path, executor: Any) -> None:
    with pytest.raises(StageFailed, match=rf"part 00001: its worker died {MAX_DEATHS} times"):
        run_stage(stage(tmp_path / "a", n=4, make=die_or_write), executor)
    artifact = Artifact(tmp_path / "a")
    assert [artifact.receipt(f"{i:05d}") is not None for i in range(4)] == [True, False, True, True]


def test_publish_leaves_the_old_file_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.json"
    publish_bytes(path, b"old")

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(DiskFull):
        publish_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from data.pipeline.executors import InProcess
from data.pipeline.runner import run_stage
from tests.data.pipeline.test_runner import stage
run_stage(stage(Path(sys.argv[1])), InProcess())
"""


@pytest.mark.parametrize(
    "fault", ["plan", "attempt", "ledger@00001", "shards@00001", "log@00002", "receipt", "receipt@00002", "manifest"]
)
def test_sigkill_at_a_boundary_then_the_same_command_gives_the_same_bytes(tmp_path: Path, fault: str) -> None:
    whole = run_stage(stage(tmp_path / "whole"), InProcess())
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")]
    killed = subprocess.run(command, env=os.environ | {"UNCLIP_FAULT": fault}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    artifact = Artifact(tmp_path / "killed")
    assert not artifact.is_complete()
    for path in (artifact.folder / "parts").glob("*.json"):
        receipt = Receipt(**json.loads(path.read_text()))
        assert all((artifact.folder / name).is_file() for name in receipt.files)
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert tree_bytes(artifact.folder) == tree_bytes(whole.folder)
    assert artifact.verify() == []


def test_a_missing_or_cut_file_of_the_whole_artifact_is_written_again(tmp_path: Path) -> None:
    def finish(folder: Path, receipts: list[Receipt]) -> list[str]:
        publish_bytes(folder / "whole.txt", f"{len(receipts)} parts".encode())
        return ["whole.txt"]

    diary = tmp_path / "diary"
    artifact = run_stage(stage(tmp_path / "a", finish=finish, work={"diary": str(diary)}), InProcess())
    before = tree_bytes(artifact.folder)
    for damage in (Path.unlink, lambda path: path.write_text("3")):
        damage(artifact.folder / "whole.txt")
        run_stage(stage(tmp_path / "a", finish=finish, work={"diary": str(diary)}), InProcess())
        assert tree_bytes(artifact.folder) == before and artifact.verify() == []
    assert len(calls(diary)) == 3


def test_stages_side_by_side_complete_though_one_fails(tmp_path: Path) -> None:
    """A failing part of one stage costs the others nothing, and is told with its stage."""
    good, bad = stage(tmp_path / "good"), replace(stage(tmp_path / "bad", make=fail_or_write), name="bad")
    with pytest.raises(StageFailed, match=r"^bad: 1 of 3 parts failed") as error:
        run_stages([good, bad], InProcess())
    assert error.value.code == Code.PARTS_FAILED
    assert is_current(good) and not is_current(bad)
    done = run_stages([good, replace(bad, make=write_part)], InProcess())
    assert [artifact.verify() for artifact in done] == [[], []]


def test_a_stage_is_current_until_anything_of_it_changes(tmp_path: Path) -> None:
    made = stage(tmp_path / "a")
    assert not is_current(made)
    run_stage(made, InProcess())
    assert is_current(made)
    assert not is_current(stage(tmp_path / "a", inputs={1: "other"}))
    assert not is_current(stage(tmp_path / "a", version=2))
    (tmp_path / "a" / "shards" / "00001.txt").write_text("")
    assert not is_current(made)


def test_what_an_input_is_called_is_not_hashed_and_its_digest_is(tmp_path: Path) -> None:
    def plan(of: str, digest: str) -> str:
        part = PartSpec("00000", (Input(of, digest),))
        return Stage("s", 1, tmp_path, {}, [part], write_part).plan.fingerprint_of(part)

    assert plan("dataset:00000", "a") == plan("shards:00000", "a") != plan("dataset:00000", "b")


def test_a_movable_stage_discards_parts_of_other_settings(tmp_path: Path) -> None:
    run_stage(stage(tmp_path / "a", settings={"t": 1}, movable=True), InProcess())
    moved = run_stage(stage(tmp_path / "a", settings={"t": 2}, movable=True), InProcess())
    assert moved.settings() == {"t": 2} and moved.verify() == []


def test_errors_keep_their_code_on_the_way_from_a_worker() -> None:
    found = pickle.loads(pickle.dumps(UserError("other config", Code.OTHER_CONFIG)))  # noqa: S301
    assert (str(found), found.code, found.exit_status) == ("other config", Code.OTHER_CONFIG, 2)
    assert pickle.loads(pickle.dumps(StageFailed("x"))).code == Code.PARTS_FAILED  # noqa: S301


def refuse(spec: PartSpec, attempt: Path) -> dict[str, int]:
    raise UserError("the loss is nan; lower lr")


def test_a_users_mistake_in_one_stage_of_several_costs_the_others_nothing(tmp_path: Path) -> None:
    bad, good = replace(stage(tmp_path / "bad", make=refuse), name="bad"), stage(tmp_path / "good")
    with pytest.raises(UserError, match="the loss is nan"):
        run_stages([bad, good], InProcess())
    assert is_current(good) and not Artifact(tmp_path / "bad").is_complete()
