"""The breaker: when it stops, and what it says."""

import copy
import threading

import pytest

from data.dataset.breaker import ADVICE, NO_ADVICE, Breaker, SuccessCollapsed
from data.fetch.reasons import Reason


def test_it_waits_for_a_full_window() -> None:
    breaker = Breaker(window=10, min_success=0.2)
    for _ in range(9):
        breaker.add(Reason.DNS)
    with pytest.raises(SuccessCollapsed):
        breaker.add(Reason.DNS)


def test_the_share_itself_is_enough() -> None:
    breaker = Breaker(window=10, min_success=0.2)
    for _ in range(20):
        for reason in [Reason.DNS] * 8 + [None] * 2:
            breaker.add(reason)


def test_what_left_the_window_no_longer_counts() -> None:
    breaker = Breaker(window=10, min_success=0.3)
    for _ in range(100):
        breaker.add(None)
    for _ in range(7):
        breaker.add(Reason.TIMEOUT)
    with pytest.raises(SuccessCollapsed, match="only 2 of the last 10 "):
        breaker.add(Reason.TIMEOUT)


def test_a_share_of_zero_never_stops() -> None:
    breaker = Breaker(window=10, min_success=0.0)
    for _ in range(100):
        breaker.add(Reason.DNS)


def test_it_names_the_dominating_reason_its_share_and_what_to_do() -> None:
    breaker = Breaker(window=100, min_success=0.05)
    with pytest.raises(SuccessCollapsed) as raised:
        for reason in [None] * 4 + [Reason.HTTP_4XX] * 24 + [Reason.DNS] * 72:
            breaker.add(reason)
    message = str(raised.value)
    for part in (
        "only 4 of the last 100",
        "4.0%",
        "at least 5.0%",
        "72 of the 96 failures (75%) are dns",
        ADVICE[Reason.DNS],
    ):
        assert part in message
    assert "\n" not in message
    assert str(copy.copy(raised.value)) == message  # made anew from what a worker sends back
    assert raised.value.exit_status == 2


def test_threads_share_one_breaker() -> None:
    breaker = Breaker(window=1000, min_success=0.5)
    stopped: list[SuccessCollapsed] = []

    def work() -> None:
        try:
            for _ in range(2000):
                breaker.add(Reason.TLS)
                breaker.add(None)
                breaker.add(None)
        except SuccessCollapsed as error:
            stopped.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not stopped and sum(breaker._counts.values()) == len(breaker._last) == 1000


@pytest.mark.parametrize(("window", "share"), [(0, 0.1), (10, 1.0), (10, -0.1)])
def test_breakers_that_are_none(window: int, share: float) -> None:
    with pytest.raises(ValueError, match="a breaker needs"):
        Breaker(window, share)


def test_there_is_advice_for_every_reason_that_can_stop_a_run() -> None:
    """And none of it sends to a command that needs a finished dataset."""
    from data.dataset.build import BEFORE_ASKING

    assert set(Reason) - ADVICE.keys() == NO_ADVICE == BEFORE_ASKING
    assert not any("python -m data" in advice or advice.endswith(".") for advice in ADVICE.values())


def test_settings_that_advice_names_exist() -> None:
    import re

    from data.fetch.settings import FetchSettings
    from data.images.settings import ImageSettings
    from data.pipeline.settings import ClusterSettings
    from data.sources.settings import ExcludeSettings, TableSettings

    known = {
        "dataset.fetch": FetchSettings, "dataset.image": ImageSettings, "dataset.exclude": ExcludeSettings,
        "dataset.table": TableSettings, "cluster": ClusterSettings,
    }  # fmt: skip
    named = re.findall(r"((?:dataset\.\w+)|cluster)\.(\w+)", " ".join(ADVICE.values()))
    assert len(named) > 15
    for section, field in named:
        assert field in known[section].model_fields, f"{section}.{field}"
