"""Index versions: which embedding model, dimensions, text and prompt the digests in the database were made with.

Each has its own partition of `digest` and its own HNSW index, because vectors of two versions must never meet in a search. One is
active: search reads it. Any number are shadows beside it: being built, or kept after they served, so that a rollback loses
nothing; what is stored becomes due in all of these. A retired one is only remembered.
"""

import asyncio
import logging
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import class_row, dict_row

from starsearch.errors import PreconditionMissing, StarsearchError, VersionMismatch
from starsearch.models import IndexVersion
from starsearch.store.database import Pool, connect
from starsearch.store.locks import polled_lock

# attaching or dropping a partition waits for whoever writes, and everybody else waits behind it: so wait briefly, often
LOCK_TIMEOUT = "1s"
LOCK_ATTEMPTS = 30
INDEX_LOCK = 78_272  # first key of an advisory lock; the second is the version's id
POLL_SECONDS = 0.2
# How good the graph is. With fewer edges or half the candidates small clusters (a few dozen of 500,000 vectors) are cut off from the
# rest, and no ef_search finds them; see docs/decisions/0018
EDGES, BUILD_CANDIDATES = 24, 128
GRAPH = f"m = {EDGES}, ef_construction = {BUILD_CANDIDATES}"
BYTES_PER_NODE = 750  # of an HNSW graph with so many edges, beside the vector; pgvector's neighbours and headers, rounded up
MAX_BUILD_MEMORY_MB = 8_192
SELECT = (
    "SELECT embedding_model, embedding_revision, dimensions, text_recipe, summary_model, prompt_version, embedding_base_url, "
    "summary_base_url, sends_dimensions, id, status FROM index_version"
)

log = logging.getLogger(__name__)


async def active_version(pool: Pool) -> IndexVersion | None:
    """The version that search uses; None in a database that has no digests yet."""
    async with pool.connection() as connection:
        return await _one(connection, "WHERE status = 'active'")


async def live_versions(pool: Pool) -> list[IndexVersion]:
    """Those whose digests are kept up to date: the active one first."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(IndexVersion)) as cursor:
        await cursor.execute(f"{SELECT} WHERE status <> 'retired' ORDER BY status = 'active' DESC, id")
        return await cursor.fetchall()


async def ensure_version(pool: Pool, wanted: IndexVersion) -> IndexVersion:
    """The active version, made from `wanted` in a new database; raises VersionMismatch where it is another one."""
    async with pool.connection() as connection:
        if await _one(connection, "WHERE status = 'active'") is None:  # the lock, and what is made under it, are the owner's
            await connection.execute("LOCK TABLE index_version IN SHARE ROW EXCLUSIVE MODE")
        active = await _one(connection, "WHERE status = 'active'")
        if active is None:
            active = await _create(connection, wanted, "active")
            await _attach(connection, active)
            await connection.execute(_index(active))
    if active.fingerprint != wanted.fingerprint:
        raise VersionMismatch(
            f"this database holds index version {active.name}, and this engine makes {wanted.name}: `starsearch reprocess` builds one "
            "from the settings, beside the one that serves"
        )
    return active


async def begin_shadow(pool: Pool, wanted: IndexVersion) -> IndexVersion:
    """The version like `wanted`, made as a shadow, without an index yet, where it is not there or was retired."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            async with pool.connection() as connection:
                await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT))
                await connection.execute("LOCK TABLE index_version IN SHARE ROW EXCLUSIVE MODE")
                version = await _find(connection, wanted) or await _create(connection, wanted, "shadow")
                await _attach(connection, version)
                return version
        except psycopg.errors.LockNotAvailable:
            await asyncio.sleep(POLL_SECONDS)
    raise StarsearchError("the tables are too busy to make room for another version: run `starsearch reprocess` again")


async def find_version(pool: Pool, prefix: str) -> IndexVersion:
    """The live version whose fingerprint begins so. Raises StarsearchError where none or several do."""
    found = [version for version in await live_versions(pool) if version.fingerprint.startswith(prefix.lower())]
    if len(found) != 1:
        raise StarsearchError(
            f"{'several index versions begin' if found else 'no index version begins'} with {prefix}: see `versions list`"
        )
    return found[0]


async def newest_shadow(pool: Pool) -> IndexVersion:
    """The newest version that never served. Raises PreconditionMissing where there is none."""
    async with pool.connection() as connection:
        found = await _one(connection, "WHERE status = 'shadow' AND activated_at IS NULL ORDER BY created_at DESC LIMIT 1")
    if found is None:
        raise PreconditionMissing("there is no new index version: name its models in the settings, then `starsearch reprocess`")
    return found


async def served_before(pool: Pool) -> IndexVersion:
    """The kept version that served last. Raises PreconditionMissing where none ever did."""
    async with pool.connection() as connection:
        found = await _one(connection, "WHERE status = 'shadow' AND activated_at IS NOT NULL ORDER BY activated_at DESC LIMIT 1")
    if found is None:
        raise PreconditionMissing("no version that served before is kept: see `starsearch versions list`")
    return found


async def describe_versions(pool: Pool) -> list[dict[str, Any]]:
    """Every version with what it holds, the active one first, the retired ones last."""
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT left(fingerprint, 12) AS version, status, embedding_model, dimensions, embedding_base_url, summary_model,
              summary_base_url, prompt_version, text_recipe,
              (SELECT count(*) FROM digest WHERE version_id = v.id) AS digests,
              (SELECT count(*) FROM due WHERE version_id = v.id) AS due,
              (SELECT count(*) FROM dead_letter WHERE version_id = v.id) AS dead_letters,
              created_at, activated_at, gate
            FROM index_version v ORDER BY status = 'active' DESC, status = 'shadow' DESC, coalesce(activated_at, created_at) DESC
            """
        )
        return await cursor.fetchall()


async def count_reusable(pool: Pool, wanted: IndexVersion) -> tuple[int, int, int]:
    """(stored items, of these digested in the version like `wanted` if there is one, of these with a summary that it may reuse)."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """
            SELECT count(*), count(*) FILTER (WHERE had.digest), count(*) FILTER (WHERE had.summary)
            FROM item i JOIN repository r ON r.id = i.repository_id AND r.gone_at IS NULL
            CROSS JOIN LATERAL (
              SELECT bool_or(v.fingerprint = %(fingerprint)s) AS digest,
                bool_or(v.summary_model = %(summary_model)s AND v.prompt_version = %(prompt_version)s) AS summary
              FROM digest d JOIN index_version v ON v.id = d.version_id AND v.status <> 'retired'
              WHERE d.item_id = i.id AND d.content_hash = i.content_hash
            ) AS had
            WHERE i.stored_at IS NOT NULL AND i.tombstoned_at IS NULL
            """,
            vars(wanted) | {"fingerprint": wanted.fingerprint},
        )
        row = await cursor.fetchone()
    return row or (0, 0, 0)


async def move_engines(pool: Pool, version: IndexVersion) -> None:
    """Write down where a version's engines serve now, where that is somewhere else than before."""
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE index_version SET embedding_base_url = %(embedding_base_url)s, summary_base_url = %(summary_base_url)s "
            "WHERE id = %(id)s AND (embedding_base_url IS DISTINCT FROM %(embedding_base_url)s "
            "OR summary_base_url IS DISTINCT FROM %(summary_base_url)s)",
            vars(version),
        )


async def has_index(pool: Pool, version: IndexVersion) -> bool:
    async with pool.connection() as connection:
        return True in await _indexes(connection, version)


async def build_index(dsn: str, version: IndexVersion) -> None:
    """Build the HNSW index over all digests at once, while they are read and written.

    At the end, because that is cheaper than row by row (docs/decisions/0013). What a killed build left behind is removed first.
    """
    async with await connect(dsn) as connection, polled_lock(connection, INDEX_LOCK, version.id):
        valid = await _indexes(connection, version)
        if True in valid:
            return
        for _ in valid:
            await connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(_index_name(version)))
        row = await (await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(_table(version)))).fetchone()
        assert row is not None
        megabytes = 64 + row[0] * (2 * version.dimensions + BYTES_PER_NODE) * 5 // 4 // 2**20
        await connection.execute(sql.SQL("SET maintenance_work_mem = {}").format(f"{min(megabytes, MAX_BUILD_MEMORY_MB)}MB"))
        await connection.execute("SET statement_timeout = 0")
        try:
            await connection.execute(_index(version, concurrently=True))
        except psycopg.errors.DiskFull:  # parallel builders share /dev/shm, which containers keep small
            log.warning("no shared memory for parallel builders: the index of %s is built by one process", version.short)
            await connection.execute("SET max_parallel_maintenance_workers = 0")
            await connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(_index_name(version)))
            await connection.execute(_index(version, concurrently=True))


async def drop_version(pool: Pool, version: IndexVersion) -> None:
    """Retire a shadow: its digests are gone, and what was due or dead in it. Raises StarsearchError for the active one."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            async with pool.connection() as connection:
                await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT))
                retired = await connection.execute(
                    "UPDATE index_version SET status = 'retired' WHERE id = %s AND status = 'shadow'", [version.id]
                )
                if not retired.rowcount:
                    raise StarsearchError(f"index version {version.short} serves search: activate another one first")
                await connection.execute("DELETE FROM due WHERE version_id = %s", [version.id])
                await connection.execute("DELETE FROM dead_letter WHERE version_id = %s", [version.id])
                await connection.execute(sql.SQL("DROP TABLE {}").format(_table(version)))
                return
        except psycopg.errors.LockNotAvailable:
            await asyncio.sleep(POLL_SECONDS)
    raise StarsearchError("the tables are too busy to drop a version: try again later")


async def _one(connection: AsyncConnection, condition: str, parameters: tuple[object, ...] = ()) -> IndexVersion | None:
    async with connection.cursor(row_factory=class_row(IndexVersion)) as cursor:
        await cursor.execute(f"{SELECT} {condition}", parameters)
        return await cursor.fetchone()


async def _find(connection: AsyncConnection, wanted: IndexVersion) -> IndexVersion | None:
    return await _one(connection, "WHERE fingerprint = %s AND status <> 'retired'", (wanted.fingerprint,))


async def _create(connection: AsyncConnection, version: IndexVersion, status: str) -> IndexVersion:
    """A version without a table yet. A retired one comes back to life, its old table gone."""
    await connection.execute(
        "INSERT INTO index_version (embedding_model, embedding_revision, dimensions, text_recipe, summary_model, prompt_version, "
        "embedding_base_url, summary_base_url, sends_dimensions, fingerprint, status, activated_at) "
        "SELECT %(embedding_model)s, %(embedding_revision)s, %(dimensions)s, %(text_recipe)s, %(summary_model)s, %(prompt_version)s, "
        "%(embedding_base_url)s, %(summary_base_url)s, %(sends_dimensions)s, %(fingerprint)s, %(status)s, "
        "CASE WHEN %(status)s = 'active' THEN now() END "
        "ON CONFLICT (fingerprint) DO UPDATE SET status = excluded.status, embedding_base_url = excluded.embedding_base_url, "
        "summary_base_url = excluded.summary_base_url, sends_dimensions = excluded.sends_dimensions, created_at = now(), "
        "activated_at = NULL, gate = NULL, probe = NULL",
        vars(version) | {"fingerprint": version.fingerprint, "status": status},
    )
    created = await _find(connection, version)
    assert created is not None
    await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_table(created)))
    return created


async def _attach(connection: AsyncConnection, version: IndexVersion) -> None:
    """Its own partition, where it has none."""
    row = await (await connection.execute("SELECT to_regclass(%s)", [f"digest_v{version.id}"])).fetchone()
    if row and row[0]:
        return
    names = {"table": _table(version), "id": sql.Literal(version.id), "n": sql.Literal(version.dimensions)}
    # attached, not created as a partition: that would wait for every reader of every version, and stop the ones after it
    await connection.execute(
        sql.SQL("CREATE TABLE {table} (LIKE digest INCLUDING DEFAULTS, CHECK (vector_dims(embedding) = {n}))").format(**names)
    )
    await connection.execute(sql.SQL("ALTER TABLE digest ATTACH PARTITION {table} FOR VALUES IN ({id})").format(**names))
    for guard in ("refuse_mixed_digests_of", "watch_items_of"):
        await connection.execute(sql.SQL("SELECT {}(%s::regclass)").format(sql.Identifier(guard)), [f"digest_v{version.id}"])


def _table(version: IndexVersion) -> sql.Identifier:
    return sql.Identifier(f"digest_v{version.id}")


def _index_name(version: IndexVersion) -> sql.Identifier:
    return sql.Identifier(f"digest_v{version.id}_embedding_idx")


def _index(version: IndexVersion, *, concurrently: bool = False) -> sql.Composed:
    return sql.SQL(
        "CREATE INDEX {concurrently} {name} ON {table} USING hnsw ((embedding::halfvec({n})) halfvec_cosine_ops) WITH ({graph})"
    ).format(
        concurrently=sql.SQL("CONCURRENTLY" if concurrently else ""),
        name=_index_name(version),
        table=_table(version),
        n=sql.Literal(version.dimensions),
        graph=sql.SQL(GRAPH),
    )


async def _indexes(connection: AsyncConnection, version: IndexVersion) -> list[bool]:
    """For each HNSW index of the version whether it is whole; a killed build leaves one that is not."""
    cursor = await connection.execute(
        "SELECT x.indisvalid FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am a ON a.oid = i.relam "
        "WHERE x.indrelid = to_regclass(%s) AND a.amname = 'hnsw'",
        [f"digest_v{version.id}"],
    )
    return [row[0] for row in await cursor.fetchall()]
