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
from training.launch import train, train_together
from training.loop.trainer import Trainer
from training.stages import TRAININGS
from training.tasks.prior import prior_stage

MODELS = ("decoder", "glide", "prior")


def untrained(run: Run, folder: Path, **cluster: object) -> Run:
    """A copy of a run without its models."""
    shutil.copytree(run.folder, folder / "t", ignore=shutil.ignore_patterns("models", "config.toml", "*.lock"))
    tables = run.config.to_dict()
    tables["run"]["folder"] = str(folder)
    tables["prior"]["checkpoint_seconds"] = 1e-9
    return Run.open(parse_config(tables | {"cluster": cluster}, "test"))


def stages_of(run: Run) -> list[Stage]:
    return [one.stage(run) for one in TRAININGS if one.together and one.row.asked_for(run.config)]


def test_trainings_side_by_side_on_workers_give_the_bytes_of_this_process(
    trained_run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one was begun in another process and broken off."""
    run = untrained(trained_run, tmp_path, workers=2)
    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "validate", lambda self: 1 / 0)
        with pytest.raises(StageFailed, match="ZeroDivisionError"):
            train(run, prior_stage(run))
    assert list((run.scratch / "train" / "prior").rglob("step-00000002"))
    made = train_together(run, stages_of(run))
    assert [artifact.folder.name for artifact in made] == list(MODELS)
    printed = capfd.readouterr().out
    for name in MODELS:
        assert tree_bytes(run.model(name).folder) == tree_bytes(trained_run.model(name).folder), name
        assert f"{name}: 3/3 steps" in printed  # workers' own lines
    assert not any((run.scratch / "train").rglob("step-*"))


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
