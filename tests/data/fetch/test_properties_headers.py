"""Heads of answers, opt-outs and robots.txt, from any server: read in bounded time, or refused in the ways that callers expect."""

import io
import string
from http.client import HTTPException

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.fetch.headers import LONGEST_LINE, MOST_LINES, Headers, read_headers
from data.fetch.robots import is_allowed, rules_for
from data.fetch.robots_tag import OPT_OUT, agent_token, is_opted_out

MANY = settings(deadline=None, max_examples=100, derandomize=True, database=None)
AGENT = "unclip-toolkit"

NAMES = st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=12)
VALUES = st.text(string.ascii_letters + string.digits + " ,;:=/\t\xe9", max_size=20)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
LINES = st.one_of(
    st.tuples(NAMES, VALUES).map(lambda field: f"{field[0]}: {field[1]}".encode("latin-1")),
    st.sampled_from(
        [b"", b" folded", b"\tfolded", b"no header", b": nameless", b"\r", b"\0", b"HTTP/1.1 200 OK", b"\xff: \x85"]
    ),
    st.binary(max_size=20),
)
HEADS = st.one_of(
    st.binary(max_size=200),
    st.lists(LINES, max_size=12).map(lambda lines: b"\r\n".join([*lines, b"", b""])),
    st.lists(LINES, max_size=12).map(b"\n".join),
)  # fmt: skip


class Counting(io.BytesIO):
    """Counts what is asked of it."""

    lines = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        self.lines += 1
        assert size == LONGEST_LINE + 1, "a line is never read without a bound"
        return super().readline(size)


def head(fields: list[tuple[str, str]]) -> bytes:
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in fields) + b"\r\n"


def check_readable(headers: Headers) -> None:
    """Every question about a head has an answer or a documented error."""
    assert headers.get("x-nothing", "other") == (headers.get_all("x-nothing") or ["other"])[0]
    for name in ("server", "x-robots-tag"):
        assert headers.get_all(name) == [value.strip() for value in headers.get_all(name)]
        assert headers.items_of(name) == [item.strip().lower() for item in headers.items_of(name)]
    try:
        length = headers.content_length()
        assert length is None or 0 <= length < 10**18
        headers.is_chunked()
    except HTTPException as error:
        assert len(str(error)) <= 200


@MANY
@given(HEADS, st.binary(max_size=20))
def test_a_head_is_read_to_its_end_and_no_further_or_refused(content: bytes, body: bytes) -> None:
    file = Counting(content + body)
    try:
        headers = read_headers(file)
    except HTTPException:  # IncompleteRead and LineTooLong are HTTPExceptions
        assert file.lines <= MOST_LINES + 2
        return
    read = (content + body)[: file.tell()]
    assert read in (b"\n", b"\r\n") or read.endswith((b"\n\n", b"\n\r\n"))
    assert read.count(b"\n") == file.lines <= MOST_LINES + 1
    check_readable(headers)


@MANY
@given(st.integers(0, 3 * MOST_LINES), st.sampled_from([b"\r\n", b"\n", b"\r"]))
def test_a_head_has_a_bounded_number_of_lines(n: int, end: bytes) -> None:
    file = io.BytesIO((b"X: y" + end) * n + (b"\n\r\n" if end == b"\r" and n else b"\r\n"))
    if n > MOST_LINES:
        with pytest.raises(HTTPException, match="more than"):
            read_headers(file)
    else:
        assert len(read_headers(file).get_all("x")) == n


@MANY
@given(FIELDS)
def test_values_come_back_whatever_case_their_names_have(fields: list[tuple[str, str]]) -> None:
    expected: dict[str, list[str]] = {}
    for name, value in fields:
        expected.setdefault(name.lower(), []).append(value.strip())
    for change in (str, str.upper, str.lower, str.title):
        headers = read_headers(io.BytesIO(head([(change(name), value) for name, value in fields])))
        assert {name: headers.get_all(name) for name in expected} == expected
        assert all(headers.get(name) == values[0] for name, values in expected.items())
        check_readable(headers)


@MANY
@given(
    FIELDS,
    st.sampled_from(sorted(OPT_OUT)),
    st.integers(0, 8),
    st.sampled_from(["", "all, ", "max-snippet: 20; ", "*: "]),
)
def test_an_opt_out_is_found_among_any_other_headers(
    fields: list[tuple[str, str]], word: str, at: int, before: str
) -> None:
    others = [(name, value) for name, value in fields if name.lower() != "x-robots-tag"]
    others.insert(at, ("X-Robots-TAG", before + word.upper()))
    assert is_opted_out(read_headers(io.BytesIO(head(others))).get_all("x-robots-tag"), AGENT)


TAG_PIECES = [
    "noai",
    "None",
    "all",
    "a",
    "B",
    ",",
    ";",
    ":",
    " ",
    "\t",
    "*",
    "-",
    "_",
    "/9",
    AGENT,
    "otherbot: ",
    "unavailable_after: ",
]
TAGS = st.lists(st.sampled_from(TAG_PIECES), max_size=8).map("".join)


@MANY
@given(st.lists(st.one_of(TAGS, st.text(max_size=30)), max_size=4))
def test_an_opt_out_in_any_header_is_one_and_its_case_does_not_matter(values: list[str]) -> None:
    said = is_opted_out(values, AGENT)
    assert said == any(is_opted_out([value], AGENT) for value in values)
    assert is_opted_out([*values, "noai"], AGENT)
    if all(value.isascii() for value in values):
        assert said == is_opted_out([value.upper() for value in values], AGENT)
    if not any(word in value.lower() for value in values for word in OPT_OUT):
        assert not said


@MANY
@given(st.text(max_size=40))
def test_an_agent_token_is_one_word(user_agent: str) -> None:
    token = agent_token(user_agent)
    assert not any(character.isspace() for character in token) and "/" not in token
    assert token == agent_token(token)


# robots.txt

TARGETS = st.text(string.ascii_letters + "/%?=&.é", max_size=15).map("/".__add__)
PATTERNS = st.text(st.sampled_from("ab/.*$%?é"), max_size=10).map("/".__add__)
ROBOTS_LINES = st.one_of(
    st.tuples(
        st.sampled_from(["User-agent", "user-AGENT ", "Disallow", "Allow", "Crawl-delay", "Sitemap", ""]),
        st.sampled_from([":", " : ", "", "::"]),
        st.one_of(PATTERNS, st.sampled_from(["*", AGENT, "Unclip-Toolkit/9", "otherbot", "", "# x"]), st.text(max_size=10)),
    ).map("".join),
    st.text(max_size=20),
)  # fmt: skip
ROBOTS = st.one_of(
    st.binary(max_size=200),
    st.lists(ROBOTS_LINES, max_size=12).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")),
)


@MANY
@given(ROBOTS, TARGETS)
def test_any_robots_txt_is_read(content: bytes, target: str) -> None:
    rules = rules_for(content, AGENT)
    assert isinstance(is_allowed(rules, target), bool)
    assert all(pattern.isascii() for _, pattern in rules)
    if b"disallow" not in content.lower():
        assert is_allowed(rules, target)


@MANY
@given(ROBOTS, TARGETS)
def test_our_own_group_decides_alone(content: bytes, target: str) -> None:
    asked = b"\nUser-agent: unclip-toolkit\nDisallow: /\n"
    assert not is_allowed(rules_for(asked, AGENT), target)
    others = content.replace(b":", b"-")  # no line is a rule any more
    assert not is_allowed(rules_for(others + asked + others, AGENT), target)
    assert is_allowed(
        rules_for(b"User-agent: *\nDisallow: /\n" + b"User-agent: unclip-toolkit\nAllow: /\n", AGENT), target
    )


@MANY
@given(PATTERNS, PATTERNS, TARGETS)
def test_the_longest_rule_decides_in_any_order(allow: str, disallow: str, target: str) -> None:
    lines = [f"Allow: {allow}", f"Disallow: {disallow}"]
    found = {
        is_allowed(rules_for("\n".join(["User-agent: *", *order]).encode(), AGENT), target)
        for order in (lines, lines[::-1])
    }
    assert len(found) == 1
    alone = is_allowed(rules_for(f"User-agent: *\nDisallow: {disallow}".encode(), AGENT), target)
    assert alone <= found.pop(), "an Allow never forbids"


@MANY
@given(TARGETS)
def test_a_rule_is_for_what_begins_with_it(target: str) -> None:
    def allowed(rule: str, path: str) -> bool:
        return is_allowed(rules_for(f"User-agent: *\nDisallow: {rule}".encode(), AGENT), path)

    assert not allowed(target, target) and not allowed(target, target + "x")
    assert not allowed(target + "$", target) and allowed(target + "$", target + "x")
    assert not allowed("/*" + target, "/prefix" + target)
