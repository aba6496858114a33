"""Are the models behind a version's names still the ones that made it?

A name is only a name: an engine can be restarted with other weights under it. Vectors of two models must never meet in a search, so
an embedding model is recognized by what it makes of a few fixed texts; a chat model by what its engine says about the weights.
"""

from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from starsearch.errors import VersionMismatch
from starsearch.models import IndexVersion
from starsearch.store.database import Pool

# The same weights on another machine and in another precision: above 0.999 (vLLM and onnxruntime: 0.9999997); another model: below 0.9.
MIN_LIKENESS = 0.99
REMEMBER = """
UPDATE index_version SET
  probe = coalesce(probe, %(probe)s::real[]),
  summary_identity = CASE WHEN %(same)s THEN coalesce(%(said)s, summary_identity) ELSE coalesce(summary_identity, %(said)s) END
WHERE id = %(id)s RETURNING probe, summary_identity
"""
ANOTHER = "restore it, or serve the other one under a name of its own and run `starsearch reprocess`"


async def check_models(
    pool: Pool,
    version: IndexVersion,
    *,
    probe: NDArray[np.float32] | None,
    summary_identity: dict[str, Any] | None = None,
    same_llm: bool = False,
) -> None:
    """Remember what the version's models look like when they are first met; raises VersionMismatch where they changed since.

    probe: (texts, dimensions), unit length; None where the weights are known by their hash. `same_llm`: its operator says that the
    chat model is the same although it is described otherwise now.
    """
    values = {
        "probe": None if probe is None else probe.tolist(),
        "said": Jsonb(summary_identity) if summary_identity else None,
        "same": same_llm,
        "id": version.id,
    }
    async with pool.connection() as connection:
        try:
            async with connection.transaction():
                cursor = await connection.execute(REMEMBER, values)
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):  # a reader only compares
            cursor = await connection.execute("SELECT probe, summary_identity FROM index_version WHERE id = %(id)s", values)
        known = await cursor.fetchone()
    if known is None:
        return
    if probe is not None and known[0] is not None:
        _compare_probe(version, np.asarray(known[0], np.float32), probe)
    if summary_identity and known[1] is not None and known[1] != summary_identity:
        raise VersionMismatch(
            f"behind the name {version.summary_model} there is another model now ({summary_identity}, it was {known[1]}): {ANOTHER}; "
            "if it is the same one in another place, set STARSEARCH_SAME_LLM=1 once"
        )


def _compare_probe(version: IndexVersion, known: NDArray[np.float32], probe: NDArray[np.float32]) -> None:
    likeness = float((known * probe).sum(axis=1).min()) if known.shape == probe.shape else 0.0
    if likeness < MIN_LIKENESS:
        raise VersionMismatch(
            f"behind the name {version.embedding_model} there is another model than the one that made this database's vectors "
            f"(likeness {likeness:.3f}, the same one has more than {MIN_LIKENESS}): {ANOTHER}"
        )
