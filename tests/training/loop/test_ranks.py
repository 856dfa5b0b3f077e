"""Two processes of a launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from two_ranks import Towers, gradients


@pytest.mark.slow
def test_processes_whose_clocks_differ_train_to_the_end_and_contrast_all_pairs(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(Path(__file__).parent / "two_ranks.py"), str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "state" / "latest").read_text() == "step-00000012"
    alone = gradients(Towers(), 0, 1)
    for rank in range(2):
        found = torch.load(tmp_path / f"gradients-{rank}.pt")
        assert len(found) == len(alone) == 3
        for ours, expected in zip(found, alone, strict=True):
            assert torch.allclose(ours, expected, atol=1e-6)
