"""What the study asks of other sections is checked when the file is read, not when `make eval` reaches it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data.pipeline.config import Config, load_config, parse_config
from data.pipeline.errors import Code, UserError
from humaneval.settings import Arm, asks_for_study, compared

ROOT = Path(__file__).resolve().parents[2]
GRIDS_ONLY = {"photorealism": 0, "caption_similarity": 0}
PAIRS_ONLY = {"diversity": 0}


def config(humaneval: Mapping[str, Any] | None = None, **tables: Any) -> Config:
    """Everything else is at its default: eval draws captions at 1, 2 and 4, grids at 2."""
    given = {"run": {"name": "x"}, "dataset": {"scenes": {"samples": 40_000}}, **tables}
    return parse_config(given | ({} if humaneval is None else {"humaneval": dict(humaneval)}), "x.toml")


def arm(name: str, guidance: float | None = None) -> dict[str, Any]:
    return {"name": name} | ({} if guidance is None else {"guidance": guidance})


SUITED: list[tuple[dict[str, Any] | None, dict[str, Any]]] = [
    (None, {}),
    ({"system_a": arm("glide"), "system_b": arm("unclip", 2)}, {}),
    ({"system_a": arm("unclip"), "system_b": arm("glide")}, {"eval": {"guidance": [1.0, 3.0], "grid_guidance": 3.0}}),
    ({"system_a": arm("unclip", 4.0), "system_b": arm("glide", 1.0), "questions": PAIRS_ONLY}, {}),
    ({"questions": GRIDS_ONLY}, {"eval": {"guidance": [1.0, 3.0]}}),
    ({"questions": PAIRS_ONLY}, {"eval": {"grids": {"captions": 4, "images": 2}}}),
    ({"questions": {"photorealism": 340, "diversity": 20}}, {}),
    ({"prompt_set": "grids", "questions": {"photorealism": 20}}, {"eval": {"guidance": [1.0, 3.0]}}),
    (None, {"systems": {"other": {"decoder": "glide"}, "unclip": {"prior": "prior", "decoder": "decoder"}}}),
    (None, {"systems": {"glide": {"decoder": "glide"}}, "eval": {"guidance": [1.0, 3.0]}}),
    ({"questions": dict.fromkeys([*GRIDS_ONLY, "diversity"], 0)}, {"eval": {"guidance": [1.0, 3.0]}}),
]

REFUSED: list[tuple[dict[str, Any] | None, dict[str, Any], str]] = [
    # What failed after 13 minutes of `make eval`.
    (None, {"eval": {"guidance": [1.0, 3.0]}}, "system_a is judged at guidance 2, from eval.grid_guidance, .* eval.guidance = 1, 3"),
    ({"system_a": arm("unclip", 3.0)}, {}, "system_a is judged at guidance 3, but .* eval.guidance = 1, 2, 4"),
    ({"system_b": arm("glide", 4.0)}, {}, "system_b is judged at guidance 4, but eval draws 'grids' at eval.grid_guidance = 2"),
    ({"system_a": arm("dalle")}, {}, "system_a is 'dalle', which is no row of .systems.; rows: unclip, glide"),
    ({"system_b": arm("glide")}, {"systems": {"a": {"decoder": "decoder"}, "b": {"decoder": "glide"}}},
     "system_b is 'glide'.* rows: a, b"),
    ({"system_a": arm("glide"), "system_b": arm("glide", 2.0)}, {}, "both glide at guidance 2; compare two"),
    ({"questions": {"caption_similarity": 341}}, {}, "caption_similarity = 341, but eval.captions.captions = 340"),
    ({"questions": {"diversity": 21}}, {}, "diversity = 21, but eval.grids.captions = 20"),
    (None, {"eval": {"grids": {"captions": 20, "images": 15}}}, "eval.grids.images = 15"),
    ({"grid_prompt_set": "captions"}, {}, "eval.captions.images = 2"),
    ({"prompt_set": "coco"}, {}, "humaneval.prompt_set is 'coco'; eval draws the prompt sets captions and grids"),
]  # fmt: skip


@pytest.mark.parametrize(("humaneval", "tables"), SUITED)
def test_what_eval_draws_can_be_judged(humaneval: dict[str, Any] | None, tables: dict[str, Any]) -> None:
    config(humaneval, **tables)


@pytest.mark.parametrize(("humaneval", "tables", "complaint"), REFUSED)
def test_what_eval_will_not_draw_is_refused_when_the_file_is_read(
    humaneval: dict[str, Any] | None, tables: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as refused:
        config(humaneval, **tables)
    assert refused.value.code == Code.USAGE and str(refused.value).startswith("x.toml: humaneval")


def test_every_front_door_refuses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from data.pipeline.cli import Command, front_door

    toml = tmp_path / "late.toml"
    toml.write_text('[run]\nname = "late"\n[dataset.scenes]\nsamples = 40000\n[eval]\nguidance = [1.0, 3.0]\n')
    commands = (Command("go", "", lambda *_: pytest.fail("it ran")),)
    assert front_door("room", "", commands, ["go", "--config", str(toml)]) == 2
    assert "eval.grid_guidance" in capsys.readouterr().err


def test_the_systems_are_the_first_two_rows_unless_named() -> None:
    assert compared(config()) == (Arm("unclip", 2.0), Arm("glide", 2.0))
    rows = {name: {"decoder": "glide"} for name in ("z", "y", "x")}
    assert compared(config(systems=rows)) == (Arm("z", 2.0), Arm("y", 2.0))
    assert compared(config({"system_b": arm("x", 2.0)}, systems=rows)) == (Arm("z", 2.0), Arm("x", 2.0))
    assert compared(config({"system_a": arm("y")}, systems=rows)) == (Arm("y", 2.0), Arm("z", 2.0))
    assert compared(config({"system_b": arm("z")}, systems=rows)) == (Arm("y", 2.0), Arm("z", 2.0))
    one = config(systems={"z": {"decoder": "glide"}})
    assert compared(one) is None and not asks_for_study(one)
    assert asks_for_study(config()) and not asks_for_study(
        config({"questions": dict.fromkeys([*GRIDS_ONLY, "diversity"], 0)})
    )


@pytest.mark.parametrize("profile", ["demo", "smoke"])
def test_the_profiles_ask_for_a_study(profile: str) -> None:
    assert compared(load_config(ROOT / "configs" / f"{profile}.toml")) == (Arm("unclip", 2.0), Arm("glide", 2.0))


def test_nothing_here_names_a_system() -> None:
    for path in [*(ROOT / "humaneval").rglob("*.py"), *(ROOT / "dashboards").rglob("*.py")]:
        assert not {"unclip", "glide"} & set(path.read_text().replace('"', " ").split()), path
