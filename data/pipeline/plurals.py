"""How many of what, in words."""


def counted(n: int, one: str, many: str | None = None) -> str:
    """`1 entry`, `2,000 entries`; the plural ends in s where none is given."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"
