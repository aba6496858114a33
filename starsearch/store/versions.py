"""Index versions: which embedding model, dimensions, text and prompt the digests in the database were made with.

Each has its own partition of `digest` and its own HNSW index, because vectors of two versions must never meet in a search.
"""

from psycopg import AsyncConnection, sql

from starsearch.errors import VersionMismatch
from starsearch.models import IndexVersion
from starsearch.store.database import Pool


async def active_version(pool: Pool) -> IndexVersion | None:
    """The version that search uses; None in a database that has no digests yet."""
    async with pool.connection() as connection:
        return await _active(connection)


async def ensure_version(pool: Pool, wanted: IndexVersion) -> IndexVersion:
    """The active version, made from `wanted` in a new database; raises VersionMismatch where it is another one."""
    async with pool.connection() as connection:
        await connection.execute("LOCK TABLE index_version IN SHARE ROW EXCLUSIVE MODE")
        active = await _active(connection) or await _create(connection, wanted)
    if active.fingerprint != wanted.fingerprint:
        raise VersionMismatch(
            f"this database holds index version {active.name}, and the settings describe {wanted.name}: "
            "restore the settings it was made with, or point STARSEARCH_HOME (or STARSEARCH_DATABASE_URL) at a new database"
        )
    return active


async def _active(connection: AsyncConnection) -> IndexVersion | None:
    cursor = await connection.execute(
        "SELECT embedding_model, embedding_revision, dimensions, text_recipe, summary_model, prompt_version, embedding_base_url, id "
        "FROM index_version WHERE status = 'active'"
    )
    row = await cursor.fetchone()
    return IndexVersion(*row) if row else None


async def _create(connection: AsyncConnection, version: IndexVersion) -> IndexVersion:
    await connection.execute(
        "INSERT INTO index_version (embedding_model, embedding_revision, dimensions, text_recipe, summary_model, "
        "prompt_version, embedding_base_url, fingerprint) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        [
            version.embedding_model,
            version.embedding_revision,
            version.dimensions,
            version.text_recipe,
            version.summary_model,
            version.prompt_version,
            version.embedding_base_url,
            version.fingerprint,
        ],
    )
    created = await _active(connection)
    assert created is not None
    names = {"table": sql.Identifier(f"digest_v{created.id}"), "id": created.id, "n": created.dimensions}
    await connection.execute(
        sql.SQL("CREATE TABLE {table} PARTITION OF digest (CHECK (vector_dims(embedding) = {n})) FOR VALUES IN ({id})").format(**names)
    )
    await connection.execute("SELECT watch_items_of(%s::regclass)", [f"digest_v{created.id}"])
    await connection.execute(
        sql.SQL(
            "CREATE INDEX ON {table} USING hnsw ((embedding::halfvec({n})) halfvec_cosine_ops) WITH (m = 16, ef_construction = 64)"
        ).format(**names)
    )
    return created
