"""docs/data.md says what the code says: its tables of reasons, its configs."""

import re
import tomllib

from data.fetch.reasons import MEANING, TRANSIENT, Reason
from data.pipeline.config import parse_config
from data.views.rules import MEANING as VIEW_MEANING
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "data.md").read_text()


def test_the_tables_of_reasons_are_the_codes() -> None:
    for reason in Reason:
        again = "yes" if reason in TRANSIENT else ""
        assert f"| `{reason}` | {MEANING[reason]} | {again} |" in TEXT, reason
    for name, meaning in VIEW_MEANING.items():
        assert f"| `{name}` | {meaning} |" in TEXT, name


def test_the_configs_are_valid() -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        parse_config(tomllib.loads(block), "docs/data.md")
