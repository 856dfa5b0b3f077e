"""What the sections of this room must not say together with others is told when the file is read."""

from pathlib import Path
from typing import Any

import pytest

from data.pipeline.errors import Code, UserError
from embed.settings import is_openais
from tests.conftest import make_config


def refused(folder: Path, **sections: Any) -> str:
    with pytest.raises(UserError) as error:
        make_config(folder, **sections)
    assert error.value.code == Code.USAGE and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "table"), [("aesthetic", {"head": "head.pth"}), ("semantic", {"threshold": 0.9})], ids=str
)
def test_a_rule_on_scores_that_nothing_makes_names_the_setting(
    tmp_path: Path, name: str, table: dict[str, Any]
) -> None:
    views = {"train": {"rules": [{"scores": name, "column": name, "min": 0.0}]}}
    told = refused(tmp_path, views=views)
    assert f"a rule of [views.train] reads scores/{name}, " in told and f"[embeddings.{name}]" in told
    make_config(tmp_path, views=views, embeddings={name: table})


def test_laions_head_on_another_clip_is_told_before_anything_is_embedded(tmp_path: Path) -> None:
    def sections(**clip: str) -> dict[str, Any]:
        return {"clip": clip, "embeddings": {"aesthetic": {"head": "/heads/sa_0_4_vit_l_14_linear.pth"}}}

    other = {"source": "pretrained", "model": "ViT-B-32-quickgelu", "tag": "openai"}
    told = refused(tmp_path, **sections(**other))
    assert "OpenAI's ViT-L-14, [clip] is ViT-B-32-quickgelu/openai" in told and "any_clip = true" in told
    assert "[clip] is the run's own" in refused(tmp_path, **sections(source="run"))
    assert "[clip] is ViT-L-14/random" in refused(tmp_path, **sections(source="random", model="ViT-L-14"))
    make_config(tmp_path, **sections(source="pretrained", model="ViT-L-14-quickgelu", tag="openai"))
    make_config(tmp_path, **sections(source="checkpoint", path="/clips/somebodys"))  # only its weights tell
    make_config(
        tmp_path, clip=other, embeddings={"aesthetic": {"head": "sa_0_4_vit_l_14_linear.pth", "any_clip": True}}
    )
    make_config(tmp_path, clip=other, embeddings={"aesthetic": {"head": "my_own_head.pth"}})


def test_openais_clips_are_known_by_name() -> None:
    names = ("ViT-L-14/openai", "ViT-L-14-quickgelu/openai", "ViT-L-14/laion2b", "ViT-L-14-336/openai", "folder")
    assert [is_openais("ViT-L-14", name) for name in names] == [True, True, False, False, False]
