"""Fetching from a folder, and what sources make of awkward files."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from data.fetch.files import FolderFetcher, file_url
from data.fetch.reasons import Reason
from data.fetch.settings import FetchSettings
from data.images.settings import ImageSettings
from data.pipeline.errors import UserError
from data.sources import values as text
from data.sources.folder import FolderSource
from data.sources.settings import FolderSettings, SplitSettings, TableSettings
from data.sources.table import TableSource
from tests.data.made_dataset import plan_table


def test_folder_fetcher_stays_in_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "a b%.png").write_bytes(b"fine")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    get = FolderFetcher(root, max_bytes=10)
    assert get(file_url("a b%.png")).content == b"fine"
    for name in ("../secret.png", "link.png", str(tmp_path / "secret.png")):
        assert get(file_url(name)).reason == Reason.PATH_REFUSED, name
    assert get(file_url("none.png")).reason == Reason.FILE_MISSING
    assert get(file_url("nul\0.png")).reason == Reason.FILE_UNREADABLE
    (root / "big.png").write_bytes(b"x" * 11)
    assert get(file_url("big.png")).reason == Reason.TOO_LARGE


def test_file_names_that_are_not_utf8_are_planned_and_read(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"latin")
    (tmp_path / "captions.csv").write_bytes(b"file,caption\ncaf\xe9.png,a caf\xe9\n")
    found = list(FolderSource(FolderSettings(path=str(tmp_path))).candidates())
    assert [(c.source_id, c.captions) for c in found] == [("caf\\xe9.png", ("a caf\ufffd",))]
    plan = plan_table(iter(found), 10, SplitSettings(), 0)
    pq.write_table(plan, tmp_path / "plan.parquet")
    url = pq.read_table(tmp_path / "plan.parquet")["url"][0].as_py()
    assert FolderFetcher(tmp_path, max_bytes=10)(url).content == b"latin"


def test_a_damaged_table_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": ["http://h/x"] * 1000, "caption": [str(i) for i in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:-4000] = b"\xff" * (len(content) - 4004)  # the footer, with the schema, stays readable
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read .*list.parquet") as raised:
        list(TableSource(TableSettings(path=str(path))).candidates())
    assert "\n" not in str(raised.value)


def test_rows_without_a_url_are_one_candidate(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(
        '{"url": "", "caption": "a"}\n{"url": null, "caption": "b"}\n{"url": "http://h/x", "caption": "c"}\n'
    )
    found = [(c.source_id, c.url, c.captions) for c in TableSource(TableSettings(path=str(path))).candidates()]
    assert found == [("(no url)", "", ("a", "b")), ("http://h/x", "http://h/x", ("c",))]


def test_what_is_no_text_becomes_the_same_character_however_it_came() -> None:
    assert [text.line(given) for given in (b"bad \xff s", "bad \ud800 s", "bad \udcff s")] == ["bad \ufffd s"] * 3
    assert text.valid("caf\xe9 \U0001f600") == "caf\xe9 \U0001f600"


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        (FetchSettings, {"contact": "\xe9a@b"}), (FetchSettings, {"user_agent": "\xdcnclip"}), (FetchSettings, {"contact": "\x01a"}),
        (FetchSettings, {"contact": "a\n"}), (FetchSettings, {"contact": " a"}), (FetchSettings, {"deadline": 1e12}),
        (FetchSettings, {"max_wait": 1e12}), (FetchSettings, {"deadline": float("nan")}), (FetchSettings, {"host_failures": -1}),
        (ImageSettings, {"background": (300, 0, 0)}), (ImageSettings, {"background": (0, -1, 0)}),
    ],
)  # fmt: skip
def test_settings_that_would_fail_every_part_are_refused(settings: Any, given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**given)


def test_settings_at_their_bounds() -> None:
    FetchSettings(deadline=86_400, max_wait=86_400, contact="a", user_agent="!~ ~", host_failures=0)
    ImageSettings(background=(0, 255, 128))
