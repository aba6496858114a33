"""What GitHub's answers hold, before it meets a column of the database: one such value must cost its own row, not its batch."""

from collections.abc import Mapping
from datetime import UTC, datetime

from starsearch.models import MAX_NAME_BYTES, MAX_NUMBER, within

MAX_ID = 2**63 - 1
LONGEST_WAIT_SECONDS = 86_400.0  # no limit lasts longer than an hour


def whole(value: object, *, least: int = 0, most: int = MAX_NUMBER) -> int:
    """A count, number or id. Raises ValueError for what is none: JSON has fractions and integers of any length."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"not a whole number from {least} to {most}: {str(value)[:40]!r}")
    return value


def word(value: object) -> str:
    """A name or id. Raises ValueError for what is none: PostgreSQL stores no NUL, no lone surrogate, and indexes nothing long."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"not a name: {str(value)[:40]!r}")
    within(value, MAX_NAME_BYTES)
    return value


def quota_of(headers: Mapping[str, str]) -> tuple[int, int, datetime] | None:
    """The limit, how much of it remains, and when it begins anew: all three, as they are told together, or None."""
    try:
        limit, remaining, reset = (whole(int(headers[f"x-ratelimit-{name}"]), most=MAX_ID) for name in ("limit", "remaining", "reset"))
        return limit, remaining, datetime.fromtimestamp(reset, UTC)
    except (ValueError, KeyError, OverflowError, OSError):
        return None


def wait_of(headers: Mapping[str, str]) -> float | None:
    """The seconds of Retry-After, a day at most; None where it holds no number."""
    asked = headers.get("retry-after", "")
    return min(float(asked), LONGEST_WAIT_SECONDS) if asked.isdecimal() else None
