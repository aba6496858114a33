"""Statements too long to stand in the function that runs them, read from the .sql files beside this module."""

from functools import cache
from importlib import resources


@cache
def statement(name: str) -> bytes:
    """The text of `name`.sql; bytes, because psycopg takes only literal text or bytes as a query."""
    return (resources.files("starsearch.store") / f"{name}.sql").read_bytes()
