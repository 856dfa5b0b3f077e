"""Config: what is refused, in which words, and that a resolved config reads back as itself."""

from pathlib import Path

import pytest

from data.dataset.settings import DatasetSettings
from data.pipeline.cli import Command, front_door
from data.pipeline.config import load_config, parse_config, without_passwords
from data.pipeline.errors import UserError
from data.pipeline.settings import ClusterSettings, RunSettings
from tests.conftest import REPOSITORY

MINIMAL = '[run]\nname = "x"\n[dataset.scenes]\nsamples = 5\n'


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.scenes.sample=3", ["dataset.scenes.sample", "did you mean samples?"]),
        ("datset.scenes.samples=3", ["[datset]", "did you mean dataset?"]),
        ("dataset.scenes.samples=many", ["dataset.scenes.samples", "integer", "'many'"]),
        ("dataset.scenes.samples=0", ["dataset.scenes.samples", "greater than or equal to 1"]),
        ("dataset.split.val=1.5", ["dataset.split.val", "less than 1"]),
        ("run.name=../evil", ["run.name", "pattern"]),
        ("cluster.workers=2.5", ["cluster.workers", "integer"]),
        ("samples=3", ["section.key=value"]),
        ("run.name.deep=3", ["run.name.deep"]),
    ],
)
def test_a_wrong_value_is_refused_by_its_dotted_name(toml: Path, override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        load_config(toml, [override])
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_file_names_the_profiles_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; profiles here: .*smoke\.toml"):
        load_config(tmp_path / "nope.toml")


def test_broken_toml_and_missing_section(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[run\n")
    with pytest.raises(UserError, match="not valid TOML"):
        load_config(path)
    path.write_text("[dataset.scenes]\nsamples = 5\n")
    with pytest.raises(UserError, match=r"run.name is required \(there is no section \[run\]\)"):
        load_config(path)
    path.write_text('[run]\nname = "x"\n')
    with pytest.raises(UserError, match="exactly one source"):
        load_config(path)


def test_overrides_take_toml_values_and_bare_strings(toml: Path) -> None:
    config = load_config(
        toml, ["run.name=other", "run.seed=7", "dataset.image.background=[1, 2, 3]", "cluster.workers=0"]
    )
    assert config[RunSettings].name == "other"
    assert config[RunSettings].seed == 7
    assert config[DatasetSettings].image.background == (1, 2, 3)
    assert config[ClusterSettings].workers == 0


def test_resolved_config_reads_back_as_itself(toml: Path, tmp_path: Path) -> None:
    config = load_config(toml)
    again = tmp_path / "again.toml"
    again.write_text(config.to_toml())
    assert load_config(again).to_dict() == config.to_dict()


@pytest.mark.parametrize("profile", sorted((REPOSITORY / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_profiles_are_valid(profile: Path) -> None:
    load_config(profile)


def test_front_door_prints_one_line_and_the_exit_status(toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise UserError("first\nsecond")

    commands = [Command("go", "go", fail), Command("fine", "fine", lambda *_: print("done"))]
    assert front_door("room", "", commands, ["go", "--config", str(toml)]) == 2
    assert capsys.readouterr().err == "error: first second [usage]\n"
    assert front_door("room", "", commands, ["fine", "--config", str(toml), "run.seed=1"]) == 0
    assert front_door("room", "", commands, ["nosuch", "--config", str(toml)]) == 2
    assert front_door("room", "", commands, ["go"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_run_folder_of_another_config_is_refused(tmp_path: Path) -> None:
    from data.pipeline.run import Run

    def config(samples: int, workers: int = 1) -> object:
        tables = {
            "run": {"name": "x", "folder": str(tmp_path)},
            "dataset": {"scenes": {"samples": samples}},
            "cluster": {"workers": workers},
        }
        return parse_config(tables, "c.toml")

    run = Run.open(config(5))  # type: ignore[arg-type]
    Run.open(config(6))  # type: ignore[arg-type]  # nothing was made yet: the folder takes the new config
    (run.folder / "dataset").mkdir()
    (run.folder / "dataset" / "plan.json").write_text("{}")
    Run.open(config(6, workers=2))  # type: ignore[arg-type]  # where to run never matters
    with pytest.raises(UserError, match=r"dataset.scenes.samples was 6 .* says 5; use another run.name"):
        Run.open(config(5))  # type: ignore[arg-type]


def test_passwords_of_urls_are_not_shown() -> None:
    shown = without_passwords(
        {"humaneval": {"database": "postgresql+psycopg://rater:p@ss:w@db.example/x", "n": 3}, "l": ["http://h/a@b"]}
    )
    assert shown == {
        "humaneval": {"database": "postgresql+psycopg://rater:***@db.example/x", "n": 3},
        "l": ["http://h/a@b"],
    }
    assert without_passwords("see https://example.org/a:b@c") == "see https://example.org/a:b@c"
