"""A model swapped behind its name is noticed before anything is mixed."""

import numpy as np
import pytest

from starsearch.errors import VersionMismatch
from starsearch.models import IndexVersion
from starsearch.store.identity import check_models
from starsearch.store.versions import active_version, ensure_version

ROOT = {"root": "Qwen/Qwen3-4B-Instruct-2507"}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def probe():
    return unit(np.random.default_rng(1).normal(size=(3, 8)))


@pytest.fixture
async def version(store):
    return await ensure_version(store.pool, IndexVersion("m", "", 8, "recipe", "chat", "v1"))


async def test_the_same_models_are_recognized_again(store, version, probe):
    noise = np.random.default_rng(2).normal(scale=0.01, size=probe.shape)
    for seen in (probe, unit(probe + noise)):  # another precision, another batch
        await check_models(store.pool, version, probe=seen, summary_identity=ROOT)


async def test_another_embedding_model_behind_the_name_is_refused(store, version, probe):
    await check_models(store.pool, version, probe=probe)
    other = unit(np.random.default_rng(3).normal(size=probe.shape))
    with pytest.raises(VersionMismatch, match=r"another model than the one that made.*reprocess") as caught:
        await check_models(store.pool, version, probe=other)
    assert caught.value.exit_code == 3
    await check_models(store.pool, version, probe=probe)  # restored: the first one is what is remembered


async def test_one_text_that_means_something_else_is_enough(store, version, probe):
    await check_models(store.pool, version, probe=probe)
    tuned = probe.copy()
    tuned[2] = unit(tuned[2:] + np.eye(8)[:1])[0]
    with pytest.raises(VersionMismatch):
        await check_models(store.pool, version, probe=tuned)


async def test_another_chat_model_behind_the_name_is_refused_until_its_operator_says_it_is_the_same(store, version):
    await check_models(store.pool, version, probe=None, summary_identity=ROOT)
    moved = {"root": "/models/qwen"}
    with pytest.raises(VersionMismatch, match=r"another model now.*STARSEARCH_SAME_LLM=1"):
        await check_models(store.pool, version, probe=None, summary_identity=moved)
    await check_models(store.pool, version, probe=None, summary_identity=moved, same_llm=True)
    await check_models(store.pool, version, probe=None, summary_identity=moved)


async def test_an_engine_that_says_nothing_is_taken_at_its_name(store, version, probe):
    await check_models(store.pool, version, probe=probe, summary_identity=ROOT)
    await check_models(store.pool, version, probe=None, summary_identity={})
    assert (await active_version(store.pool)).id == version.id
