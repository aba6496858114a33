"""The kill switch: one row that every process looks for before it begins something new."""

from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from starsearch.models import Usage
from starsearch.store.database import Pool
from starsearch.store.statements import statement


async def pause(pool: Pool, reason: str) -> bool:
    """Whether work was not paused yet; if it was, the first reason stays."""
    async with pool.connection() as connection:
        cursor = await connection.execute("INSERT INTO pause (reason) VALUES (%s) ON CONFLICT DO NOTHING", [reason])
        return cursor.rowcount == 1


async def resume(pool: Pool) -> bool:
    """Whether work was paused."""
    async with pool.connection() as connection:
        return (await connection.execute("DELETE FROM pause")).rowcount == 1


async def paused(connection: AsyncConnection) -> tuple[datetime, str] | None:
    """Since when, and why."""
    return await (await connection.execute("SELECT since, reason FROM pause")).fetchone()


async def used_today(connection: AsyncConnection) -> list[Usage]:
    async with connection.cursor(row_factory=class_row(Usage)) as cursor:
        return await (await cursor.execute(statement("usage_today"))).fetchall()
