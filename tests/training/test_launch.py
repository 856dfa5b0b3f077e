"""Where trainings run changes no byte: in this process, on workers side by side, in the processes of a launcher."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.pipeline.config import parse_config
from data.pipeline.errors import StageFailed
from data.pipeline.run import Run
from data.pipeline.stage import Stage
from tests.conftest import tree_bytes
from training.launch import train_together
from training.stages import TRAININGS

MODELS = ("decoder", "glide", "prior")


def untrained(run: Run, folder: Path, **cluster: object) -> Run:
    """A copy of a run without its models."""
    shutil.copytree(run.folder, folder / "t", ignore=shutil.ignore_patterns("models", "config.toml", "*.lock"))
    tables = run.config.to_dict()
    tables["run"]["folder"] = str(folder)
    return Run.open(parse_config(tables | {"cluster": cluster}, "test"))


def stages_of(run: Run) -> list[Stage]:
    return [one.stage(run) for one in TRAININGS if one.together and one.row.asked_for(run.config)]


def test_trainings_side_by_side_on_workers_give_the_bytes_of_this_process(
    trained_run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = untrained(trained_run, tmp_path, workers=2)
    made = train_together(run, stages_of(run))
    assert [artifact.folder.name for artifact in made] == list(MODELS)
    printed = capfd.readouterr().out
    for name in MODELS:
        assert tree_bytes(run.model(name).folder) == tree_bytes(trained_run.model(name).folder), name
        assert f"{name}: 3/3 steps" in printed  # workers' own lines
    assert not any((run.scratch / "train").rglob("step-*"))


@pytest.mark.slow
def test_a_training_whose_worker_is_killed_goes_on_to_the_same_bytes(
    trained_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = untrained(trained_run, tmp_path, workers=2)
    tables = run.config.to_dict()
    for section in ("prior", "decoder"):
        tables[section]["checkpoint_seconds"] = 1e-9
    run = Run(parse_config(tables, "test"))
    with monkeypatch.context() as faulty:
        faulty.setenv(
            "UNCLIP_FAULT", "training-latest@2"
        )  # workers inherit it; a worker that goes on is killed there again
        with pytest.raises(StageFailed, match="its worker died 3 times"):
            train_together(run, stages_of(run))
    assert (run.scratch / "train" / "prior").exists()
    train_together(run, stages_of(run))
    for name in MODELS:
        assert tree_bytes(run.model(name).folder) == tree_bytes(trained_run.model(name).folder), name


@pytest.mark.slow
def test_a_launchers_processes_train_one_model_and_publish_it_once(trained_run: Run, tmp_path: Path) -> None:
    run = untrained(trained_run, tmp_path, workers=2)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training", "all",
        "--config", str(run.folder / "config.toml"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for steps_shown in (True, False):  # made, then found to stand
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"wrote {run.model('prior').folder}") == 1
        assert ("prior: 3/3 steps" in done.stdout) == steps_shown
    for name in MODELS:
        artifact = run.model(name)
        assert artifact.verify() == []
        # Each process draws its own noise: not the weights of one process.
        assert (
            tree_bytes(artifact.folder)["model.safetensors"]
            != tree_bytes(trained_run.model(name).folder)["model.safetensors"]
        )
    assert [path.name for path in run.scratch.iterdir() if "rank" in path.name] == []
