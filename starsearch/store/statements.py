"""Statements too long to stand in the function that runs them, read from the .sql files beside this module."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, cast

from psycopg import sql


@cache
def statement(name: str) -> bytes:
    """The text of `name`.sql; bytes, because psycopg takes only literal text or bytes as a query."""
    return (resources.files("starsearch.store") / f"{name}.sql").read_bytes()


def filled(name: str, values: Mapping[str, sql.Composable]) -> sql.Composed:
    """The text of `name`.sql with what stands in braces filled in. Only for numbers and conditions of our own: the rest are parameters."""
    return sql.SQL(cast("Any", statement(name).decode())).format(**values)
