"""Opt-outs: X-Robots-Tag headers and robots.txt."""

import socket
import time
from typing import Any

import pytest

from data.fetch import robots
from data.fetch.http import Fetched, HttpFetcher
from data.fetch.reasons import Reason
from data.fetch.robots import RobotsTxt, is_allowed, rules_for
from data.fetch.robots_tag import agent_token, is_opted_out
from data.fetch.settings import FetchSettings
from data.fetch.urls import parse_url
from tests.data.raw_server import raw_server, reply

pytestmark = pytest.mark.timeout(30)
AGENT = "unclip-toolkit"


def test_our_token_is_the_first_product() -> None:
    assert agent_token("Unclip-Toolkit/0.1 (research crawler)") == AGENT
    assert agent_token(" ") == ""


@pytest.mark.parametrize(
    "value",
    [
        "noai", "NoAI", " noimageai ", "none", "noml", "noindex, nofollow", "NOIMAGEINDEX", "noai, max-image-preview:large",
        "max-image-preview:large, noai", "max-snippet: 20, max-video-preview: -1, noindex", "unavailable_after: 25 Jun 2030, noimageai",
        "unavailable_after: Wednesday, 25 Jun 2025 15:00:00 GMT, noai", "unavailable_after: 25-Jun-2025 15:00:00 PST, noai",
        "unavailable_after: 2025-06-25T15:00:00+02:00, noai", "googlebot: nofollow, unclip-toolkit: noai", "Unclip-Toolkit: NOAI",
        "unclip-toolkit/0.1: noai", "*: noai", "noai; noimageai", "noindex nofollow", "googlebot: all, *: none",
    ],
)  # fmt: skip
def test_an_opt_out_is_found_wherever_it_stands(value: str) -> None:
    assert is_opted_out([value], AGENT)
    assert is_opted_out(["all", value], AGENT)


@pytest.mark.parametrize(
    "value",
    [
        "", "all", "nofollow", "max-snippet:20", "googlebot: noai", "otherbot: noindex, noai", "unclip: noai",
        "unavailable_after: Wednesday, 25 Jun 2025 15:00:00 GMT", "googlebot: max-snippet:20, noindex", "noarchive, notranslate",
        "unclip-toolkit: nofollow, otherbot: none",
    ],
)  # fmt: skip
def test_what_is_no_opt_out_for_us(value: str) -> None:
    assert not is_opted_out([value], AGENT)


def test_an_opt_out_is_honoured_unless_configured_otherwise() -> None:
    two = b"HTTP/1.1 200 OK\r\nX-Robots-Tag: all\r\nx-robots-tag: otherbot: all, *: NoAI\r\nContent-Length: 1\r\n\r\nx"
    with raw_server({"/two": two}) as server:
        assert fetcher(server.authority)(server.url("/two")) == Fetched(reason=Reason.OPTED_OUT, http_status=200)
        assert fetcher(server.authority, respect_robots_tag=False)(server.url("/two")).content == b"x"


# robots.txt

ROBOTS = b"""\xef\xbb\xbf# a comment
User-agent: otherbot
User-agent: Unclip-Toolkit/9  # both
Disallow: /private
Allow: /private/but
Disallow: /*.gif$
Crawl-delay: 10
Disallow: /caf\xc3\xa9

User-agent: *
Disallow: /
"""


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("/", True), ("/private", False), ("/private/x", False), ("/private/but", True), ("/private/but/x?y", True),
        ("/a/b.gif", False), ("/a/b.gif?x", True), ("/caf%c3%a9/x", False), ("/caf%C3%A9", False), ("/cafe", True),
    ],
)  # fmt: skip
def test_robots_txt_by_the_longest_rule(target: str, allowed: bool) -> None:
    assert is_allowed(rules_for(ROBOTS, AGENT), target) is allowed
    assert not is_allowed(rules_for(ROBOTS, "somebody-else"), target)


def test_robots_txt_ties_groups_and_wildcards() -> None:
    assert is_allowed(rules_for(b"User-agent: *\nDisallow: /x\nAllow: /x", AGENT), "/x")
    assert is_allowed(rules_for(b"User-agent: *\nDisallow:", AGENT), "/x")  # an empty rule forbids nothing
    assert is_allowed(rules_for(b"User-agent: unclip-toolkit\n\nUser-agent: *\nAllow: /", AGENT), "/x")
    twice = b"User-agent: unclip-toolkit\nDisallow: /a\nUser-agent: *\nDisallow: /\nUser-agent: unclip-toolkit\nDisallow: /b"
    assert [is_allowed(rules_for(twice, AGENT), t) for t in ("/a", "/b", "/c")] == [False, False, True]
    stars = rules_for(b"User-agent: *\nDisallow: /a*b*c$\nDisallow: *.php", AGENT)
    assert [is_allowed(stars, t) for t in ("/abc", "/axbxc", "/abcd", "/acb", "/x.php?y")] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert is_allowed(rules_for(b"\x00\xff garbage\nUser-agent\n:::\n", AGENT), "/x")


def test_hostile_robots_txt_is_matched_in_linear_time() -> None:
    rules = rules_for(b"User-agent: *\nDisallow: /" + b"*a" * 5000 + b"b", AGENT)
    start = time.process_time()
    assert is_allowed(rules, "/" + "a" * 60_000)
    assert time.process_time() - start < 1


def fetcher(authority: str, **settings: Any) -> HttpFetcher:
    return HttpFetcher(FetchSettings(**({"attempts": 1, "deadline": 3.0} | settings)), trusted=authority)


@pytest.fixture(autouse=True)
def _no_host_is_known_yet() -> None:
    robots._entries.clear()  # ports come back, and then another server answers there


def obeying(**settings: Any) -> HttpFetcher:
    defaults = {"attempts": 1, "deadline": 2.0, "allow_private_hosts": True, "respect_robots_txt": True}
    return HttpFetcher(FetchSettings(**(defaults | settings)))


def test_robots_txt_is_asked_for_once_and_obeyed() -> None:
    with raw_server({"/robots.txt": reply(ROBOTS), "/ok": reply(), "/private/x": reply()}) as server:
        assert obeying()(server.url("/ok")).content == b"image bytes"
        assert obeying()(server.url("/private/x")).reason == Reason.ROBOTS_TXT
        assert obeying()(server.url("/ok?again")).content == b"image bytes"
        assert server.paths() == ["/robots.txt", "/ok", "/ok?again"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (reply(b"", "404 Not Found"), None),
        (reply(b"", "403 Forbidden"), None),
        (reply(b"", "302 Found", Location="/robots.txt"), None),  # a loop is as good as none
        (reply(b"", "302 Found", Location="/real"), Reason.ROBOTS_TXT),
        (reply(b"", "500 Oops"), Reason.ROBOTS_UNREACHABLE),
        (reply(b"", "429 Slow down"), Reason.ROBOTS_UNREACHABLE),
        (reply(b"x", Content_Length=100), Reason.ROBOTS_UNREACHABLE),
        (reply(b"", Content_Length=10**9), Reason.ROBOTS_UNREACHABLE),
        (reply(b"#" * 600_000 + b"\nUser-agent: *\nDisallow: /"), None),  # 500 KiB are read
    ],
)  # fmt: skip
def test_robots_txt_that_is_not_simply_there(answer: bytes, reason: Reason | None) -> None:
    cut_off = b"Content-Length: 100\r" in answer
    answers = {
        "/robots.txt": (lambda connection: connection.sendall(answer)) if cut_off else answer,
        "/real": reply(b"User-agent: *\nDisallow: /"),
        "/ok": reply(),
    }
    with raw_server(answers) as server:
        found = obeying()(server.url("/ok"))
        assert found.reason == reason, found
        assert ("/ok" in server.paths()) == (reason is None)


def test_a_redirect_is_held_against_the_robots_txt_of_where_it_leads() -> None:
    with raw_server({"/robots.txt": reply(b"User-agent: *\nDisallow: /hidden"), "/hidden": reply()}) as second:
        gone = reply(b"", "301 Moved", Location=second.url("/hidden"))
        with raw_server({"/moved": gone}) as first:
            assert obeying()(first.url("/moved")).reason == Reason.ROBOTS_TXT
        assert second.paths() == ["/robots.txt"]


def test_a_host_that_cannot_be_had_keeps_its_own_reason() -> None:
    for reason in (Reason.DNS, Reason.HOST_REFUSED, Reason.CONNECTION, Reason.TLS, Reason.TIMEOUT):
        answer = Fetched(reason=reason, detail="why")
        asked = RobotsTxt({"http://nowhere.example/robots.txt": answer}.__getitem__, f"agent-{reason}")
        refusal = asked.refusal(parse_url("http://nowhere.example/x"))
        assert refusal == Fetched(reason=reason, attempts=0, detail="robots.txt of http://nowhere.example: why")


def test_a_refusing_and_a_stalling_host_keep_their_own_reasons() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        stalled = obeying(deadline=0.2)(url)
    robots._entries.clear()
    refused = obeying()(url)
    assert (stalled.reason, refused.reason) == (Reason.TIMEOUT, Reason.CONNECTION)
    assert "timed out" in stalled.detail and "Connection refused" in refused.detail
    assert stalled.attempts == refused.attempts == 0


def test_what_made_robots_txt_unreadable_is_logged() -> None:
    with raw_server({"/robots.txt": reply(b"", "503 No")}) as server:
        found = obeying()(server.url("/x"))
    assert found.detail == f"robots.txt of http://{server.authority}: http_5xx, status 503"
    assert (found.http_status, found.attempts) == (None, 0)
