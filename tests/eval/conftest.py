"""One torch thread: two that wait for each other on a busy machine cost ten times their work."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
