"""What a run has cost: side by side counts once, a repeat is added, a line that a kill cut short is left out."""

import json
import time
from pathlib import Path

from data.pipeline.cost import Cost, cost_text, measured, read_costs, summary


def test_wall_time_side_by_side_counts_once_and_pauses_not_at_all() -> None:
    costs = [
        Cost("clip", 0, 10, 9, 100), Cost("classifier", 1, 5, 4, 300), Cost("train", 20, 50, 60, 200), Cost("clip", 60, 61, 1, 50),
    ]  # fmt: skip
    told = summary(costs)
    assert (told["wall_s"], told["cpu_s"], told["peak_rss_mb"]) == (41, 74, 300)
    assert [(s["name"], s["wall_s"], s["cpu_s"]) for s in told["stages"]] == [
        ("clip", 11, 10),
        ("classifier", 4, 4),
        ("train", 30, 60),
    ]
    assert cost_text(costs).splitlines()[-1].split()[:2] == ["in", "all"]


def test_a_command_is_logged_also_when_it_fails(tmp_path: Path) -> None:
    with measured(tmp_path / "missing", "data funnel"):
        pass
    assert not (tmp_path / "missing").exists(), "measuring makes no folder"
    try:
        with measured(tmp_path, "data build"):
            end = time.process_time() + 0.05
            while time.process_time() < end:
                pass
            raise ValueError
    except ValueError:
        pass
    (cost,) = read_costs(tmp_path)
    assert cost.name == "data build" and 0.04 <= cost.cpu_s < 5 and cost.end > cost.start and cost.peak_rss_mb > 1
    with (tmp_path / "cost.jsonl").open("a") as log:
        log.write('{"name": "cut sho')
    assert len(read_costs(tmp_path)) == 1
    assert json.loads((tmp_path / "cost.json").read_text())["stages"][0]["name"] == "data build"
