"""Numbers and counts as a reader expects them."""

from typing import Any

PLUS_MINUS = "\u00b1"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 image``, ``1,497 images``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def with_error(value: float, error: float | None, digits: int) -> str:
    """A value and its standard error or spread, where there is one."""
    return f"{value:.{digits}f}" + ("" if error is None else f" {PLUS_MINUS} {error:.{digits}f}")


def duration(hours: float) -> str:
    """In the unit that suits it: ``3.1 hours``, ``1 minute``, ``8.2 seconds``."""
    sizes = {"hour": 1, "minute": 60, "second": 3600}
    unit = next((unit for unit, size in sizes.items() if hours * size >= 1), "second")
    text = f"{hours * sizes[unit]:.1f}".removesuffix(".0")
    return f"{text} {unit}" if text == "1" else f"{text} {unit}s"


def escaped(text: str) -> str:
    """Text from elsewhere within a line of GitHub's Markdown: no cell ends in it, and nothing in it is a link."""
    for active, shown in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("](", "]\\("), ("][", "]\\[")):
        text = text.replace(active, shown)
    # Addresses are links without brackets.
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def short(value: Any) -> str:
    """A value as text that is short enough for a cell."""
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else str(value)[:200]
