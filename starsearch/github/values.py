"""What GitHub's answers hold, before it meets a column of the database: one such value must cost its own row, not its batch."""

from starsearch.models import MAX_NAME_BYTES, MAX_NUMBER, within

MAX_ID = 2**63 - 1


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
