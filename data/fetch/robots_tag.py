"""Opt-outs in X-Robots-Tag headers, read in full: lists, several headers, agents, directives with values."""

import re

OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none", "noml"})
# Directives whose own syntax has a colon; any other "word:" in front names the agent that the directives after it are for.
VALUED_DIRECTIVES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
AGENT = re.compile(r"[a-z0-9!#$&'*+.^_`|~/-]+")  # one word; "25 jun 2025 15" of a date before its first colon is none


def agent_token(user_agent: str) -> str:
    """The first product's name in lower case: what opt-outs call us by."""
    return next(iter(user_agent.split()), "").split("/")[0].lower()


def is_opted_out(values: list[str], agent: str) -> bool:
    """Whether X-Robots-Tag headers ask us not to use the image: for everybody, or for our `agent` token."""
    for value in values:
        addressee = ""
        for item in re.split("[,;]", value.lower()):
            name, colon, rest = (part.strip() for part in item.partition(":"))
            if colon and name not in VALUED_DIRECTIVES and name not in OPT_OUT and AGENT.fullmatch(name):
                addressee, name = name.split("/")[0], rest
            if addressee in ("", "*", agent) and not OPT_OUT.isdisjoint(name.split()):
                return True
    return False
