"""Whatever a table or a server calls a URL: it is mended or refused, never anything else, and mending twice changes nothing."""

import ipaddress
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.fetch.urls import PORTS, BadUrl, Url, parse_url, redirected
from data.sources.canonical import ascii_host, canonical_url, host_of

MANY = settings(deadline=None, max_examples=100, derandomize=True, database=None)

# Lone surrogates are what bytes of a table that are no UTF-8 become.
ANYTHING = st.text(st.characters(), max_size=40)
LABELS = st.text(st.sampled_from("aZ09-_üß。．日\u200d\u00ad❤xn-"), min_size=1, max_size=8)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
ADDRESSES = st.one_of(
    st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"), st.integers(0, 2**32).map(str)
)
HOSTS = st.one_of(NAMES, ADDRESSES, st.sampled_from(["h.", "H", "h%2Ecom", "0x7f.1", "[::1", "[v1.x]", "a..b", ""]))
PORT_TEXTS = st.one_of(
    st.just(""), st.integers(0, 70_000).map(lambda port: f":{port}"), st.sampled_from([":", ":0080", ":٣", ":x"])
)
TAILS = st.text(st.sampled_from(string.printable + "é%%//..?#[]\\\udce9"), max_size=30)
SCHEMES = st.sampled_from(
    ["http://", "https://", "HTTP:\\\\", "http:", "https:///", " \thttp://", "ftp://", "//", "http://u:p@"]
)
URL_LIKE = st.builds("".join, st.tuples(SCHEMES, HOSTS, PORT_TEXTS, st.just("/"), TAILS))
TEXTS = st.one_of(URL_LIKE, ANYTHING)
SOUND = st.builds(
    "{}://{}{}/{}".format,
    st.sampled_from(["http", "https", "HTTP"]),
    st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,8}(\.[A-Za-z][A-Za-z0-9-]{0,8}){0,3}", fullmatch=True),
    st.one_of(st.just(""), st.integers(1, 65_535).map(lambda port: f":{port}")),
    st.text(string.ascii_letters + string.digits + "-._~%/?", max_size=20),
)


def parsed(text: str) -> Url | None:
    """None for what nobody fetches; any error but BadUrl is a failure of the test."""
    try:
        return parse_url(text)
    except BadUrl:
        return None


def check_sound(url: Url) -> None:
    """What is sent on the wire is ASCII without white space, to a host name or address, at a port."""
    assert url.scheme in PORTS and 0 < url.port < 1 << 16
    assert url.target.startswith("/") and url.target.isascii() and not set(url.target) & set(" \t\r\n\v\f#\0\x7f")
    assert url.host and url.host.isascii() and url.host == url.host.lower() and not set(url.host) & set("/\\?#@% []")
    if ":" in url.host:
        assert ipaddress.IPv6Address(url.host)
    elif url.host.rpartition(".")[2].isdigit():
        assert str(ipaddress.IPv4Address(url.host)) == url.host


@MANY
@given(TEXTS)
def test_a_url_is_mended_or_refused_and_mending_twice_changes_nothing(text: str) -> None:
    url = parsed(text)
    if url is not None:
        check_sound(url)
        assert parse_url(str(url)) == url


@MANY
@given(SOUND)
def test_a_plain_address_is_never_refused(text: str) -> None:
    url = parse_url(text)
    check_sound(url)
    assert url.host == host_of(text) and url.scheme == text.partition(":")[0].lower()


@MANY
@given(SOUND, st.one_of(URL_LIKE, TAILS, st.binary(max_size=30).map(lambda sent: sent.decode("latin-1"))))
def test_a_redirect_leads_somewhere_sound_or_is_refused(base: str, location: str) -> None:
    location = location.encode("utf-8", "surrogateescape").decode("latin-1")  # as http.client hands a header over
    try:
        url = redirected(parse_url(base), location)
    except BadUrl:
        return
    check_sound(url)


@MANY
@given(TEXTS)
def test_a_canonical_url_is_its_own(text: str) -> None:
    once = canonical_url(text)
    assert canonical_url(once) == once
    assert host_of(once) == host_of(text)


@MANY
@given(SOUND)
def test_spellings_of_one_address_have_one_canonical_form(text: str) -> None:
    scheme, _, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    name, _, port = host.partition(":")
    default = str(PORTS[scheme.lower()])
    same = f"{scheme.upper()}://{name.upper()}.:{port or default}{slash}{path}#fragment"
    assert canonical_url(same) == canonical_url(text)
    assert parse_url(same) == parse_url(text)


@MANY
@given(TEXTS)
def test_every_text_has_a_host_or_none(text: str) -> None:
    host = host_of(text)
    assert host == host.lower() or not host.isascii()
    url = parsed(text)
    if url is not None and text == str(url):
        assert host == url.host


@MANY
@given(st.one_of(NAMES, ANYTHING))
def test_a_host_name_is_encoded_once(host: str) -> None:
    once = ascii_host(host)
    assert ascii_host(once) == once


@pytest.mark.parametrize("prefix", ["http://", "https://h", "http://h:", "http://[", "http://h/?"])
@MANY
@given(rest=ANYTHING)
def test_what_comes_after_a_good_beginning_does_no_harm(prefix: str, rest: str) -> None:
    parsed(prefix + rest)
    canonical_url(prefix + rest)
    host_of(prefix + rest)


@pytest.mark.parametrize("text", ["http\u017f://h/", "HTTP\u017f://h:80/"])
def test_a_scheme_with_a_long_s_is_refused(text: str) -> None:
    assert parsed(text) is None
    assert canonical_url(text) == text


@pytest.mark.parametrize("letter", ["\u017f", "\u0130", "\u0131"])
def test_letters_that_only_fold_to_ascii_are_encoded_like_any_other(letter: str) -> None:
    once = canonical_url(f"http://{letter}.com/")
    assert canonical_url(once) == once
    assert host_of(once) == host_of(f"http://{letter}.com/") and once.isascii()
