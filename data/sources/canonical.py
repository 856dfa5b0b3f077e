"""Canonical URLs: two spellings of one address are one image. Used for identity and exclusion, never for fetching."""

import re
from urllib.parse import urlsplit

# The common case, in one match: scheme, host, port, the rest without its fragment.
_PLAIN = re.compile(
    r"(https?)://([A-Za-z0-9._-]+)(?::(\d*))?([/?][^#]*)?(?:#.*)?", re.DOTALL | re.IGNORECASE | re.ASCII
)
_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")
DEFAULT_PORTS = {"http": "80", "https": "443"}


def canonical_url(url: str) -> str:
    """The address without what does not change where it leads (RFC 3986, 6.2.2 and 6.2.3).

    Scheme and host in lower case, international host names in their ASCII form, no default port, no dot after the host, no
    fragment, `/` for an empty path, percent escapes in capitals. What is no http(s) URL stays as it is.
    """
    match = _PLAIN.fullmatch(url)
    if match is None:
        return _canonical_of_rare(url)
    scheme, host, port, rest = match.groups()
    return _join(scheme.lower(), "", host, port, rest or "")


def _canonical_of_rare(url: str) -> str:
    """User names, bracketed and international hosts."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else str(parts.port)
    except ValueError:
        return url
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        return url
    user, at, _ = parts.netloc.rpartition("@")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    query = f"?{parts.query}" if parts.query else ""
    return _join(parts.scheme, user + at, ascii_host(host), port, parts.path + query)


def _join(scheme: str, user: str, host: str, port: str | None, rest: str) -> str:
    if "%" in rest:
        rest = _ESCAPE.sub(lambda escape: escape[0].upper(), rest)
    if not rest.startswith("/"):
        rest = f"/{rest}"
    colon_port = "" if not port or port == DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{user}{host.lower().rstrip('.')}{colon_port}{rest}"


def host_of(url: str) -> str:
    """The host of an http(s) URL in canonical form; empty where there is none."""
    match = _PLAIN.fullmatch(url)
    if match is not None:
        return match[2].lower().rstrip(".")
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return ascii_host(parts.hostname or "").rstrip(".") if parts.scheme in DEFAULT_PORTS else ""


def ascii_host(host: str) -> str:
    """A host name as the domain name system knows it: lower case, international labels in Punycode; as given where that fails."""
    if host.isascii():
        return host.lower()
    import idna

    try:
        return idna.encode(host, uts46=True).decode()
    except idna.IDNAError:
        return host.lower()
