"""Fixtures of the data room's tests."""

from collections.abc import Iterator

import pytest

from tests.data.fake_web import Web


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        yield server
