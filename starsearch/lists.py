"""A list of repositories from a CSV file, plain or .gz: the columns full_name and stars, by the names in its first row.

A bad row costs only itself, and is told with its line. A file that is damaged is refused as a whole: half a list would drop the
repositories of the other half.
"""

import csv
import gzip
import io
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from starsearch.errors import Rejected, StarsearchError
from starsearch.models import Rejection, clean, is_repository_name
from starsearch.store.rankings import NamedRepository

MOST_STARS = 2**31 - 1
LINES = 10  # of one row; past that a quote was never closed, and the row is its first line only
SHOWN = 60  # characters of a bad value
NUMBER = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True)
class RepositoryList:
    """repositories: by stars, ties in the order of the file."""

    repositories: list[NamedRepository]
    rejections: list[Rejection]


def read_list(path: Path) -> RepositoryList:
    """Raises StarsearchError for a file that is no such list."""
    lines = _lines(path)
    columns, start = _header(path, lines)
    repositories: dict[str, NamedRepository] = {}
    rejections = []
    while start < len(lines):
        line = start + 1
        try:
            row, start = _row(lines, start)
            if row:
                repository = _parse(row, columns)
                if repository.full_name.lower() in repositories:
                    raise Rejected(f"{repository.full_name} is there twice")
                repositories[repository.full_name.lower()] = repository
        except Rejected as error:
            start = max(start, line)
            rejections.append(Rejection(line, str(error)))
    return RepositoryList(sorted(repositories.values(), key=lambda repository: -repository.stars), rejections)


def _header(path: Path, lines: list[str]) -> tuple[tuple[int, int], int]:
    """Where the two columns are, and the line after the header."""
    try:
        header, start = _row(lines, 0)
        names = [name.strip().lower() for name in header]
        return (names.index("full_name"), names.index("stars")), start
    except (Rejected, ValueError) as error:
        raise StarsearchError(
            f"{path.name} has no columns full_name and stars: its first row must name them, as in "
            "`full_name,stars` and then `owner/name,1234` (more columns do no harm)"
        ) from error


def _lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StarsearchError(f"{path.name} is damaged or ends early ({error}): get it again") from error
    return io.StringIO(data.decode("utf-8-sig", "replace"), newline="").readlines()


def _row(lines: list[str], start: int) -> tuple[list[str], int]:
    """The row that begins on a line, and the line after it. Raises Rejected where no row ends within LINES."""
    problem: csv.Error | None = None
    for end in range(start + 1, min(start + LINES, len(lines)) + 1):
        try:
            return next(csv.reader(lines[start:end], strict=True)), end
        except csv.Error as error:
            problem = problem or error
    raise Rejected(f"not a row of CSV ({problem})")


def _parse(row: list[str], columns: tuple[int, int]) -> NamedRepository:
    if len(row) <= max(columns):
        raise Rejected(f"only {len(row)} columns")
    full_name, stars = (row[column].strip() for column in columns)
    if not full_name:
        raise Rejected("no full_name")
    if not is_repository_name(full_name):
        raise Rejected(f"{clean(full_name)[:SHOWN]!r} is not owner/name")
    if not NUMBER.fullmatch(stars) or int(stars) > MOST_STARS:
        raise Rejected(f"{full_name}: {clean(stars)[:SHOWN]!r} is not a number of stars")
    return NamedRepository(full_name, int(stars))
