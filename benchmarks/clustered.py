"""Invented digests whose vectors lie in clusters, as embeddings do, in the real schema: what the store's benchmarks search.

Vectors: a 48-dimensional mixture of 2,000 topics of very different sizes in 60 fields, turned into 384 dimensions, with a common
bias (as sentence embeddings have) and noise. Repositories are as unequal as GitHub's, and 70 % of what a repository holds is
about its own topic. Uniform random vectors would be harder than anything real, and filters by repository would cost nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg import sql

from starsearch.models import IndexVersion
from starsearch.store.versions import GRAPH

Vectors = NDArray[np.float32]
DIMENSIONS, LATENT, TOPICS, FIELDS = 384, 48, 2_000, 60
REPOSITORIES = 40_000
CHUNK = 10_000
DAYS = 365
NOW = datetime(2026, 11, 1, tzinfo=UTC)
VERSION = IndexVersion("clustered", "", DIMENSIONS, "benchmark", "benchmark", "v1")
VOCABULARY = 30_000
BUILD_MEMORY = "2GB"  # the graph of 500,000 vectors is 0.6 GB; one that does not fit is built three times as slowly


@dataclass(frozen=True)
class Rows:
    """Columns of the same length. repositories: ids from 1; ages: days before NOW."""

    vectors: Vectors
    repositories: NDArray[np.int64]
    ages: NDArray[np.float64]


class World:
    """The topics; rows and queries are drawn from the same ones."""

    def __init__(self, seed: int = 1) -> None:
        random = np.random.default_rng(seed)
        fields = random.normal(size=(FIELDS, LATENT))
        self.topics = fields[random.integers(FIELDS, size=TOPICS)] + 0.7 * random.normal(size=(TOPICS, LATENT))
        self.topic_share = zipf(TOPICS)
        self.projection = random.normal(size=(LATENT, DIMENSIONS)) / np.sqrt(LATENT)
        self.bias = random.normal(size=DIMENSIONS) * 0.5
        self.home = random.choice(TOPICS, REPOSITORIES, p=self.topic_share)
        self.repository_share = zipf(REPOSITORIES)

    def rows(self, number: int, *, seed: int) -> Rows:
        random = np.random.default_rng(seed)
        repositories = random.choice(REPOSITORIES, number, p=self.repository_share)
        at_home = random.random(number) < 0.7
        topics = np.where(at_home, self.home[repositories], random.choice(TOPICS, number, p=self.topic_share))
        return Rows(self._vectors(topics, random), repositories + 1, random.random(number) * DAYS)

    def queries(self, number: int, *, seed: int) -> Vectors:
        """Held out: of the same topics, and of no row."""
        random = np.random.default_rng(seed)
        return self._vectors(random.choice(TOPICS, number, p=self.topic_share), random)

    def vector_of(self, seed: int) -> Vectors:
        """One of a topic that is drawn too; the same for a seed every time. Shape (384,)."""
        random = np.random.default_rng(seed)
        drawn: Vectors = self._vectors(random.choice(TOPICS, 1, p=self.topic_share), random)[0]
        return drawn

    def _vectors(self, topics: NDArray[np.int64], random: np.random.Generator) -> Vectors:
        latent = self.topics[topics] + 0.5 * random.normal(size=(len(topics), LATENT))
        vectors = latent @ self.projection + self.bias + 0.15 * random.normal(size=(len(topics), DIMENSIONS))
        unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit


def zipf(number: int) -> NDArray[np.float64]:
    share = 1 / np.arange(1, number + 1)
    return np.asarray(share / share.sum())


def fill(connection: psycopg.Connection, world: World, number: int, version_id: int, *, first: int = 1) -> None:
    """Copy items, summaries and digests `first` to `number` in; the table's index is built afterwards, which is much cheaper."""
    register_vector(connection)
    if first == 1:
        connection.execute(
            "INSERT INTO repository (full_name) SELECT format('bench/repository-%%s', n) FROM generate_series(1, %s) AS n", [REPOSITORIES]
        )
    for start in range(first, number + 1, CHUNK):
        rows = world.rows(min(CHUNK, number + 1 - start), seed=start)
        _copy_items(connection, rows, start)
        _copy_digests(connection, rows, start, version_id)
        connection.commit()


def _copy_items(connection: psycopg.Connection, rows: Rows, start: int) -> None:
    columns = "id, repository_id, number, partition_at, stored_at, type, state, title, body, url, author, created_at, content_hash"
    with connection.cursor().copy(f"COPY item ({columns}) FROM STDIN") as copy:
        texts = _texts(len(rows.vectors), start)
        for offset, (repository, age) in enumerate(zip(rows.repositories, rows.ages, strict=True)):
            item, moment = start + offset, NOW - timedelta(days=float(age))
            title, body = next(texts)
            kind, state = ("issue", "open") if item % 3 else ("pull_request", "merged")
            url = f"https://github.com/bench/repository-{repository}/issues/{item}"
            author = f"author-{item % 5_000}"
            copy.write_row((item, int(repository), item, moment, moment, kind, state, title, body, url, author, moment, _key(item)))


def _copy_digests(connection: psycopg.Connection, rows: Rows, start: int, version_id: int) -> None:
    with connection.cursor().copy(
        "COPY summary (key, text, source, model, prompt_version, prompt_tokens, completion_tokens) FROM STDIN"
    ) as copy:
        for item in range(start, start + len(rows.vectors)):
            copy.write_row(
                (
                    _key(item),
                    f"What item {item} is about, in the words of a summary of the usual length. " * 3,
                    "model",
                    VERSION.summary_model,
                    "v1",
                    0,
                    0,
                )
            )
    with connection.cursor().copy(
        "COPY digest (version_id, item_id, partition_at, content_hash, summary_key, embedding) FROM STDIN (FORMAT BINARY)"
    ) as copy:
        copy.set_types(["int2", "int8", "timestamptz", "bytea", "bytea", "halfvec"])
        for offset, (vector, age) in enumerate(zip(rows.vectors, rows.ages, strict=True)):
            item = start + offset
            moment = NOW - timedelta(days=float(age))
            copy.write_row((version_id, item, moment, _key(item), _key(item), HalfVector(vector)))


def _key(item: int) -> bytes:
    return item.to_bytes(32, "big")


def _texts(number: int, seed: int) -> Iterator[tuple[str, str]]:
    """Titles of 8 and bodies of 60 words, as common and rare as words are."""
    random = np.random.default_rng(seed)
    words = random.choice(VOCABULARY, size=(number, 68), p=zipf(VOCABULARY))
    for row in words:
        text = [f"w{word}x" for word in row]
        yield " ".join(text[:8]), " ".join(text[8:])


def build_index(connection: psycopg.Connection, table: str) -> None:
    """The index that store.versions declares, dropped before a bulk load and built after it."""
    connection.execute(sql.SQL("SET maintenance_work_mem = {}").format(BUILD_MEMORY))
    connection.execute("SET max_parallel_maintenance_workers = 2")
    connection.execute(
        sql.SQL("CREATE INDEX ON {} USING hnsw ((embedding::halfvec({})) halfvec_cosine_ops) WITH ({})").format(
            sql.Identifier(table), DIMENSIONS, sql.SQL(GRAPH)
        )
    )
    connection.commit()
