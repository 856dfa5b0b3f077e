"""URLs as tables have them, to what browsers send."""

import pytest

from data.fetch.http import HttpFetcher
from data.fetch.reasons import Reason
from data.fetch.settings import FetchSettings
from data.fetch.urls import BadUrl, parse_url, redirected


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("http://h.com", "http://h.com/"),
        ("  HTTP://H.Com:80/A b?c d#f \n", "http://h.com/A%20b?c%20d"),
        ("https://h.com:443?x", "https://h.com/?x"),
        ("http://h:8080/x", "http://h:8080/x"),
        ("http://h:/x", "http://h/x"),
        ("http://h./x", "http://h/x"),
        ("http://a_b.com/", "http://a_b.com/"),
        ("http:///h/x", "http://h/x"),
        ("http:\\\\h\\a\\b?c\\d", "http://h/a/b?c\\d"),
        ("http://h/../../a/./b/..", "http://h/a/"),
        ("http://h/%2e%2E/x/%2e", "http://h/x/"),
        ("http://h/a\tb\nc\r\nHost: evil", "http://h/abcHost:%20evil"),
        ("http://h/\0\x7f", "http://h/%00%7F"),
        # escapes stay as they are, and so does what only looks like one
        ("http://h/a%20b%2Fc", "http://h/a%20b%2Fc"),
        ("http://h/100%/%zz%", "http://h/100%/%zz%"),
        ("http://h/é%C3%A9?ü=ß", "http://h/%C3%A9%C3%A9?%C3%BC=%C3%9F"),
        ("http://h/\udce9.jpg", "http://h/%E9.jpg"),  # a byte that was no UTF-8 in the table
        ('http://h/a|b[c]<d>"', "http://h/a|b[c]%3Cd%3E%22"),
        # international names
        ("http://münchen.de/straße", "http://xn--mnchen-3ya.de/stra%C3%9Fe"),
        ("http://FAß.de/", "http://xn--fa-hia.de/"),  # IDNA 2008, not 2003
        ("http://日本語。jp/", "http://xn--wgv71a119e.jp/"),
        ("http://i❤.ws/", "http://xn--i-7iq.ws/"),  # not IDNA 2008, and yet browsers go there
        ("http://m%C3%BCnchen.de/", "http://xn--mnchen-3ya.de/"),
        # numbers that are addresses
        ("http://2130706433/", "http://127.0.0.1/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://017700000001/", "http://127.0.0.1/"),
        ("http://１２７.0.0.1/", "http://127.0.0.1/"),
        ("http://[::FFFF:1.2.3.4]:81/", "http://[::ffff:1.2.3.4]:81/"),
    ],
)  # fmt: skip
def test_what_browsers_fetch_is_mended(text: str, sent: str) -> None:
    url = parse_url(text)
    assert str(url) == sent
    assert parse_url(sent) == url  # mending again changes nothing
    assert url.target.isascii() and not set(url.target) & set(" \t\r\n")


HOPELESS = [
    "", "not a url", "h/x.jpg", "//h/x.jpg", "http://", "http:///", "https:///?x", "file:///etc/passwd", "ftp://h/x",
    "data:image/png;base64,AAAA", "javascript:alert(1)", "http://u:p@h/", "http://h:99999/", "http://h:0/", "http://h:8x/",
    "http://[::1", "http://[v1.x]/", "http://a..b/", "http://a b/", "http://h%00/", "http://h\0/", "http://1.2.3.4.5/",
    "http://256.1.1.1/", "http://h/\ud800", "http://\udce9.com/", "http://" + "a" * 64 + ".com/", "http://h/" + "x" * 70_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOPELESS)
def test_what_nobody_fetches_is_a_reason(text: str) -> None:
    with pytest.raises(BadUrl):
        parse_url(text)
    assert HttpFetcher(FetchSettings())(text).reason == Reason.BAD_URL


@pytest.mark.parametrize(
    ("location", "where"),
    [
        ("x", "http://h/a/x"),
        ("/x", "http://h/x"),
        ("?q", "http://h/a/b?q"),
        ("../x", "http://h/x"),
        ("//k/x", "http://k/x"),
        ("\\\\k\\x", "http://k/x"),
        ("https://k/y", "https://k/y"),
        (" /sp ace\t ", "http://h/sp%20ace"),
        ("/caf\xc3\xa9", "http://h/caf%C3%A9"),  # UTF-8 bytes, as http.client hands them over
        ("/caf\xe9", "http://h/caf%E9"),  # Latin-1 bytes
        ("http://m\xc3\xbcnchen.de/x", "http://xn--mnchen-3ya.de/x"),
    ],
)
def test_where_a_redirect_leads(location: str, where: str) -> None:
    assert str(redirected(parse_url("http://h/a/b?c"), location)) == where


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://k/x", "gopher://k", "http://[::1", "http://u@k/", "data:,x"]
)
def test_where_a_redirect_may_not_lead(location: str) -> None:
    with pytest.raises(BadUrl):
        redirected(parse_url("http://h/a/b?c"), location)


@pytest.mark.parametrize("text", ["", " \t\n"])
def test_a_row_without_a_url_says_so(text: str) -> None:
    with pytest.raises(BadUrl, match="the row has no URL"):
        parse_url(text)
