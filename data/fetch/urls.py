"""A URL as a crawl's table has it to what is sent on the wire, the way browsers do it (WHATWG URL Standard, special schemes).

White space around, tabs and line breaks inside, backslashes, spaces, non-ASCII characters and stray `%` are mended; host names
are mapped by UTS 46 and encoded by IDNA 2008; numbers that browsers take for IPv4 addresses become addresses. What no browser
fetches, another scheme than http and https, and credentials (somebody's secret in a public table) are a BadUrl.
"""

import re
import socket
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urljoin

LONGEST = 1 << 16  # characters
PORTS = {"http": 80, "https": 443}
CONTROLS_AND_SPACE = "".join(map(chr, range(0x21)))
TABS_AND_LINE_BREAKS = str.maketrans("", "", "\t\r\n")
# What stays as it is beside letters, digits and `_.-~`. A `%` that escapes nothing is sent as it is, as browsers do.
PATH_SAFE = "/%:@!$&'()*+,;=|[]^"
QUERY_SAFE = "/%:@!$&()*+,;=|[]^?`{}\\"
SPLIT = re.compile(r"(?ai)(https?):[/\\]*([^/\\?#]*)([^?#]*)(\?[^#]*)?")
PLAIN_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
NUMBER = re.compile(r"\d+|0x[0-9a-f]*")


class BadUrl(ValueError):
    """The URL cannot, or must not, be fetched."""


class Url(NamedTuple):
    """`host` is lower-case ASCII, a dotted IPv4 or a bare IPv6 address; `target` is ASCII: path and query, from `/` on."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """`host:port`, as in a Host header: without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.origin + self.target


def parse_url(text: str) -> Url:
    """Raises BadUrl."""
    if len(text) > LONGEST:
        raise BadUrl(f"a URL of {len(text)} characters; {LONGEST} are allowed")
    text = text.strip(CONTROLS_AND_SPACE).translate(TABS_AND_LINE_BREAKS)
    if not text:
        raise BadUrl("the row has no URL")
    match = SPLIT.match(text)
    if match is None:
        raise BadUrl("only http and https are fetched")
    scheme, authority, path, query = match.groups()
    if "@" in authority:
        raise BadUrl("URLs with credentials are not fetched")
    name, bracket, after = authority.partition("]") if authority.startswith("[") else (authority, "", "")
    if not bracket:
        name, colon, after = name.partition(":")
        after = colon + after
    scheme = scheme.lower()
    try:
        target = quote(_without_dots(path.replace("\\", "/")), safe=PATH_SAFE, errors="surrogateescape") or "/"
        if query:
            target += "?" + quote(query[1:], safe=QUERY_SAFE, errors="surrogateescape")
    except UnicodeError as error:
        raise BadUrl(f"characters that are none: {error}") from error
    return Url(scheme, _ipv6(name[1:]) if bracket else _host(name), _port(after, PORTS[scheme]), target)


def redirected(base: Url, location: str) -> Url:
    """Where a Location header leads; `location` as http.client gives it: its bytes read as Latin-1. Raises BadUrl."""
    location = location.encode("latin-1").decode("utf-8", "surrogateescape")
    location = location.strip(CONTROLS_AND_SPACE).translate(TABS_AND_LINE_BREAKS)
    path, mark, query = location.partition("?")
    try:
        return parse_url(urljoin(str(base), path.replace("\\", "/") + mark + query))
    except BadUrl:
        raise
    except ValueError as error:  # urljoin on brackets that are no address
        raise BadUrl(str(error)) from error


def _without_dots(path: str) -> str:
    """The path without `.` and `..` segments, which servers would answer with 400."""
    if "/." not in path and "/%2" not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for last, segment in zip([False] * (len(segments) - 1) + [True], segments, strict=True):
        plain = segment.replace("%2e", ".").replace("%2E", ".")
        if plain == ".." and kept:
            kept.pop()
        if plain not in (".", ".."):
            kept.append(segment)
        elif last:
            kept.append("")
    return "/" + "/".join(kept)


def _port(text: str, default: int) -> int:
    if text in ("", ":"):
        return default
    digits = text[1:]
    if (
        text[0] != ":"
        or not (digits.isascii() and digits.isdigit())
        or len(digits) > 9
        or not 0 < int(digits) < 1 << 16
    ):
        raise BadUrl(f"no port: {text[:20]!r}")
    return int(digits)


def _ipv6(text: str) -> str:
    try:
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text))
    except (OSError, ValueError) as error:
        raise BadUrl(f"no IPv6 address: {text[:60]!r}") from error


def _host(text: str) -> str:
    host = text.lower()
    if "%" in host:
        try:
            host = unquote_to_bytes(host).decode()
        except UnicodeError as error:
            raise BadUrl(f"no host name: {text[:60]!r}") from error
    if not host.isascii():
        host = _to_ascii(host)
    host = host.lower().removesuffix(".")
    if len(host) > 253 or PLAIN_HOST.fullmatch(host) is None:
        raise BadUrl(f"no host name: {text[:60]!r}")
    if NUMBER.fullmatch(host.rpartition(".")[2]) is None:
        return host
    try:  # 127.1, 2130706433, 0x7f.1 and 017700000001 are addresses too
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError as error:
        raise BadUrl(f"no IPv4 address: {text[:60]!r}") from error


def _to_ascii(host: str) -> str:
    """IDNA 2008 after UTS 46 mapping; names that it leaves out and browsers know, such as emoji, by plain Punycode."""
    import idna

    try:
        mapped = idna.uts46_remap(host, std3_rules=False, transitional=False)
        return ".".join(label if label.isascii() else _label(label) for label in mapped.split("."))
    except UnicodeError as error:  # idna's own errors are UnicodeErrors
        raise BadUrl(f"no host name: {host[:60]!r}") from error


def _label(label: str) -> str:
    import idna

    try:
        return idna.alabel(label).decode()
    except idna.IDNAError:
        return "xn--" + label.encode("punycode").decode()
