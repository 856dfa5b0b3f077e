"""Exclusion lists and canonical URLs: every spelling of what is listed is found, nothing else is, and a broken line is refused."""

from pathlib import Path

import numpy as np
import pytest

from data.dataset.settings import DatasetSettings
from data.pipeline.errors import UserError
from data.sources.canonical import canonical_url, host_of
from data.sources.exclude import read_exclusions
from data.sources.settings import ExcludeSettings
from data.sources.source import open_source


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("http://h/a.jpg", "http://h/a.jpg"),
        ("HTTP://Example.COM:80/A.jpg?Q=1#frag", "http://example.com/A.jpg?Q=1"),
        ("https://h:443", "https://h/"),
        ("https://h:80/x", "https://h:80/x"),
        ("http://h./x", "http://h/x"),
        ("http://h?q", "http://h/?q"),
        ("http://h/%c3%a9%2F", "http://h/%C3%A9%2F"),
        ("http://münchen.de/x", "http://xn--mnchen-3ya.de/x"),
        ("http://MÜNCHEN.de:80/x#y", "http://xn--mnchen-3ya.de/x"),
        ("http://User:Pw@H:80/x", "http://User:Pw@h/x"),
        ("http://[2001:DB8::1]:80/x", "http://[2001:db8::1]/x"),
        ("http://h/a b\n#x", "http://h/a b\n"),
        ("http://h:99999/x", "http://h:99999/x"),
        ("http://[broken/x", "http://[broken/x"),
        ("ftp://H/x#y", "ftp://H/x#y"),
        ("not a url", "not a url"),
        ("", ""),
    ],
)
def test_canonical_urls(url: str, canonical: str) -> None:
    assert canonical_url(url) == canonical
    assert canonical_url(canonical) == canonical


def test_host_of() -> None:
    assert [host_of(u) for u in ("http://H.com:1/x", "https://a@MÜ.de./", "ftp://h/", "x", "http://[")] == [
        "h.com", "xn--m-eha.de", "", "", "",
    ]  # fmt: skip


def lists(tmp_path: Path, **content: str) -> ExcludeSettings:
    for name, text in content.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return ExcludeSettings(**{name: str(tmp_path / f"{name}.txt") for name in content})  # type: ignore[arg-type]


def test_urls_and_domains(tmp_path: Path) -> None:
    found = read_exclusions(
        lists(
            tmp_path,
            urls="\ufeff# opted out\n\nHTTP://A.com:80/x.jpg#f   # asked on Monday\nhttps://b.com/#/y\n",
            domains="www.Example.com\n*.wild.org # all\nmünchen.de\n.dot.net.\nlocalhost\n",
        )
    )
    for url, reason in {
        "https://a.com/x.jpg": "excluded_url", " http://A.com/x.jpg#other ": "excluded_url", "http://a.com/y.jpg": None,
        "https://b.com/": "excluded_url", "http://example.com/q": "excluded_domain", "https://img.EXAMPLE.com:8080/q": "excluded_domain",
        "http://notexample.com/": None, "http://example.com.evil.org/": None, "http://wild.org/": "excluded_domain",
        "http://xn--mnchen-3ya.de/": "excluded_domain", "http://www.münchen.de/x": "excluded_domain", "http://x.dot.net/": "excluded_domain",
        "http://user@example.com/": "excluded_domain", "http://localhost/": "excluded_domain", "http://com/": None, "": None,
        "folder:example.com/x": None,
    }.items():  # fmt: skip
        assert found.url_reason(url) == reason, url
    assert set(found.facts) == {"urls", "domains"} and found.facts["urls"]["name"] == "urls.txt"
    assert {name: facts["entries"] for name, facts in found.facts.items()} == {
        "urls": len(found.urls),
        "domains": len(found.domains),
    }


def test_hashes(tmp_path: Path) -> None:
    found = read_exclusions(
        lists(tmp_path, sha256=f"{'AB' * 32}\n{'ab' * 32} # again\n", phash="ffffffffffffffff\n0000000000000001\n")
    )
    assert found.sha256 == {"ab" * 32}
    assert found.phash.dtype == np.uint64 and found.phash.tolist() == [1, 2**64 - 1]
    assert len(read_exclusions(ExcludeSettings()).phash) == 0


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("urls", "http://h/x\nexample.com/y\n", r"urls.txt, line 2: 'example.com/y' is not an http or https URL"),
        ("domains", "# x\n\nhttp://h/x\n", r"domains.txt, line 3: 'http://h/x' is not a domain"),
        ("domains", "a..b\n", "line 1: 'a..b' is not a domain"),
        ("domains", "*\n", "line 1"),
        ("sha256", "abc\n", r"sha256.txt, line 1: 'abc' is not 64 hex digits"),
        ("phash", "0x00000000000000\n", "line 1: .* is not 16 hex digits"),
    ],
)
def test_a_broken_line_is_refused_by_number(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_exclusions(lists(tmp_path, **{name: text}))


def test_a_missing_or_unreadable_list_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.exclude.urls: cannot read .*none.txt: No such file"):
        read_exclusions(ExcludeSettings(urls=str(tmp_path / "none.txt")))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"dataset.exclude.domains: cannot read .*binary.txt"):
        read_exclusions(ExcludeSettings(domains=str(tmp_path / "binary.txt")))


def test_candidates_say_which_list_names_them(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a/1,x\nhttp://b/1,x\nhttp://c/1,x\n")
    exclude = lists(tmp_path, urls="https://a/1\n", domains="b\n")
    settings = DatasetSettings.model_validate({"table": {"path": str(tmp_path / "list.csv")}, "exclude": exclude})
    source = open_source(settings, 0)
    assert [c.excluded for c in source.candidates()] == ["excluded_url", "excluded_domain", None]
    assert source.facts()["exclusion lists"]["domains"]["bytes"] == 2
