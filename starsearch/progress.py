"""How a long run tells whoever watches how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]  # stage, how many are done, of how many (None: unknown)


def no_progress(_stage: str, _done: int, _total: int | None) -> None:
    """For whoever does not watch."""
