"""What sections ask of each other is judged when the file is read, and only what must fail is refused."""

import pytest

from data.pipeline.config import parse_config
from data.pipeline.errors import UserError


def config(samples: int, split: dict, **settings: object) -> None:
    parse_config(
        {"run": {"name": "x"}, "dataset": {"scenes": {"samples": samples}, "split": split}, "eval": settings},
        "test.toml",
    )


def captions(n: int) -> dict:
    return {"captions": n, "images": 2}


def test_more_captions_than_can_be_held_out_are_refused_at_once():
    with pytest.raises(
        UserError, match=r"eval.captions.captions = 500, .* dataset.scenes.samples = 1000 at .* = 0.1 at most 156"
    ):
        config(1000, {"val": 0.05, "test": 0.05}, captions=captions(500))
    with pytest.raises(UserError, match="eval.grids.captions = 21, .* at most 20"):
        config(20, {"val": 0.4, "test": 0.4}, captions=captions(5), grids={"captions": 21, "images": 16})
    with pytest.raises(UserError, match="at most 0 are held out"):
        config(1000, {"val": 0.0, "test": 0.0}, captions=captions(5))


def test_what_may_go_well_is_not_refused():
    config(1000, {"val": 0.05, "test": 0.05}, captions=captions(110))
    config(1000, {"val": 0.05, "test": 0.05}, captions=captions(150))  # unlikely, but who knows
    config(20, {"val": 0.0, "test": 0.0})  # about the data alone
    config(20, {"val": 0.05, "test": 0.05}, label="x")


def test_defaults_count_where_evaluation_is_asked_for():
    for asked in ({"captions": {"captions": 340, "images": 2, "two_object": 20}}, {"guidance": [1.0, 2.0]}):
        with pytest.raises(UserError, match=r"eval.captions.captions = 340, .* at most 17"):
            config(50, {"val": 0.05, "test": 0.05}, **asked)


def test_a_resolved_config_about_the_data_alone_is_read_again():
    tables = {"run": {"name": "x"}, "dataset": {"scenes": {"samples": 50}}}
    resolved = parse_config(tables, "test.toml").to_dict()
    assert parse_config(resolved, "resolved.toml").to_dict() == resolved
    asked = resolved | {"eval": resolved["eval"] | {"steps": 3}}
    with pytest.raises(UserError, match="eval.captions.captions = 340"):
        parse_config(asked, "resolved.toml")
