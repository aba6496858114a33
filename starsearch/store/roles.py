"""Three roles with no more than they need: the owner changes the schema, the writer rows, the reader nothing (it adds thumbs).

They log in themselves, because a role's statement_timeout holds for whoever logs in as it and not for its members. They are made
without a password: until an administrator sets one, nobody logs in with them over the network.
"""

from importlib import resources

import psycopg
from psycopg import AsyncConnection, sql

from starsearch.errors import PreconditionMissing

ROLES = ("owner", "writer", "reader")
PREFIX = "starsearch_"


async def set_up_roles(connection: AsyncConnection, *, prefix: str = PREFIX) -> list[str]:
    """Make the roles that are missing, hand the schema to the owner, and grant; returns the names made.

    `connection` must be in autocommit mode. Raises PreconditionMissing with the statements for an administrator where this user may not.
    """
    names = {role: f"{prefix}{role}" for role in ROLES}
    try:
        async with connection.transaction():
            made = [name for name in names.values() if await _create(connection, name)]
            await _join(connection, names["owner"])
            await _join(connection, names["reader"])
            await _hand_over(connection, names["owner"])
            await connection.execute(_grants(names, connection.info.dbname))
    except psycopg.errors.InsufficientPrivilege as error:
        user = connection.info.user
        wanted = " ".join(f"CREATE ROLE {name} LOGIN;" for name in names.values())
        raise PreconditionMissing(
            f"{user} may not set up roles ({str(error).strip().splitlines()[0]}): let an administrator run "
            f'"{wanted} GRANT {", ".join(names.values())} TO {user} WITH ADMIN OPTION; ALTER ROLE {user} CREATEROLE;" and then this '
            "command again, as the owner of the tables"
        ) from error
    return made


async def _create(connection: AsyncConnection, name: str) -> bool:
    """Whether it was missing; a migration makes the reader for `serve` to step down to, which does not log in."""
    cursor = await connection.execute("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", [name])
    row = await cursor.fetchone()
    if row is None or not row[0]:
        verb = sql.SQL("CREATE" if row is None else "ALTER")
        await connection.execute(sql.SQL("{} ROLE {} LOGIN").format(verb, sql.Identifier(name)))
    return row is None


async def _join(connection: AsyncConnection, name: str) -> None:
    """Since PostgreSQL 16 who made a role and is no superuser is not in it, and could neither hand tables to it nor step down to it."""
    cursor = await connection.execute("SELECT pg_has_role(%s, 'USAGE')", [name])
    if await cursor.fetchone() == (False,):
        await connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(name)))


async def _hand_over(connection: AsyncConnection, owner: str) -> None:
    """Tables, views and functions of ours to the owner; not what an extension brought."""
    await connection.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {}").format(sql.Identifier(owner)))  # or it may own nothing
    cursor = await connection.execute(
        """
        SELECT format('ALTER %%s %%s OWNER TO %%I', CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
          c.oid::regclass, %(owner)s::text)
        FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
          AND pg_get_userbyid(c.relowner) <> %(owner)s::text
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('e', 'i', 'a') AND c.relkind IN ('S', 'v'))
        UNION ALL
        SELECT format('ALTER FUNCTION %%s OWNER TO %%I', p.oid::regprocedure, %(owner)s::text)
        FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND pg_get_userbyid(p.proowner) <> %(owner)s::text
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
        """,
        {"owner": owner},
    )
    for (statement,) in await cursor.fetchall():
        await connection.execute(statement)


def _grants(names: dict[str, str], database: str) -> sql.Composed:
    text = (resources.files("starsearch.store") / "roles.sql").read_text("utf-8")
    identifiers = {name: sql.Identifier(value) for name, value in (names | {"database": database}).items()}
    return sql.SQL(text).format(**identifiers)
