"""What makes a seed replay, what makes a disk full, and how much is too much; the rest of chaos/ is proved by its plants."""

import errno
from collections import Counter
from dataclasses import replace

import pytest

from chaos.disk import small_disk
from chaos.faults import FAULTS, schedule
from chaos.ledger import Seen, Total, disagreements, unlike
from chaos.proof import excess


def drawn(seed: int, seconds: float) -> list[tuple[float, str, float]]:
    return [(at, fault.__name__, chance.random()) for at, fault, chance in schedule(seed, seconds)]


def test_a_seed_replays_and_a_longer_run_goes_on_with_the_same_faults():
    assert drawn(7, 60) == drawn(7, 300)[: len(drawn(7, 60))]
    assert drawn(7, 300) != drawn(8, 300)
    assert {name for _, name, _ in drawn(7, 3_600)} == {fault.__name__ for fault in FAULTS}


def test_a_full_disk_takes_nothing_more_until_it_is_given_back(tmp_path):
    disk = small_disk(tmp_path / "disk")
    if disk.reason:
        pytest.skip(disk.reason)
    try:
        (disk.folder / "before").write_bytes(b"x" * 10_000)
        with disk.full():
            with pytest.raises(OSError) as refused:
                (disk.folder / "more").write_bytes(b"x" * 100_000)
            assert refused.value.errno == errno.ENOSPC
        (disk.folder / "after").write_bytes(b"x" * 100_000)
        assert (disk.folder / "before").stat().st_size == 10_000
    finally:
        disk.forget()


SUMMARIES = Total("summary", requests=420, unanswered=4, prompt_tokens=80_000, completion_tokens=20_000, answers=400)
VECTORS = Total("embedding", requests=12, prompt_tokens=30_000, answers=11)
SEEN = Seen(
    Counter(chat=406, prompt_tokens=81_100, completion_tokens=20_300, embedding_tokens=30_500),
    own=8, open_calls=6, summaries=398, missed=0, unstored=0, largest=(250, 80), largest_embedded=3_000,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"answers": 380}, ["406 summaries"]),  # a twentieth of the calls forgotten
        ({"answers": 407}, ["406 summaries"]),  # more than engines wrote
        ({"prompt_tokens": 76_000}, ["tokens of prompts"]),
        ({"prompt_tokens": 81_101}, ["tokens of prompts"]),
        ({"completion_tokens": 19_000}, ["tokens of summaries"]),
        ({"requests": 390}, ["414 requests were answered"]),
    ],
)
def test_a_ledger_that_is_a_twentieth_off_is_not_right(changed: dict[str, int], said: list[str]):
    found = list(disagreements(SEEN, replace(SUMMARIES, **changed), VECTORS))
    assert [words in finding for finding, words in zip(found, said, strict=True)] == [True for _ in said]


def test_vectors_that_no_engine_made_and_texts_asked_for_again_and_again_are_found():
    assert "tokens embedded" in next(disagreements(SEEN, SUMMARIES, replace(VECTORS, prompt_tokens=31_000)))
    assert "for 200 texts" in next(disagreements(replace(SEEN, summaries=200), SUMMARIES, VECTORS))
    assert not list(disagreements(replace(SEEN, summaries=200, unstored=256), SUMMARIES, VECTORS))


def test_totals_are_what_calls_add_up_to():
    assert not list(unlike({"summary": SUMMARIES}, {"summary": SUMMARIES}))
    assert list(unlike({"summary": replace(SUMMARIES, requests=419)}, {"summary": SUMMARIES}))
    assert list(unlike({}, {"embedding": VECTORS}))


@pytest.mark.parametrize(
    ("counts", "texts", "sound"),
    [
        ({}, 200, True),
        ({"unreadable answer": 1, "unusable vector": 1}, 200, True),
        ({"unreadable answer": 3}, 200, False),
        ({"unreadable answer": 12}, 10_000, True),
        ({"unreadable answer": 13}, 10_000, False),
        ({"no answer": 1}, 10_000, False),  # somebody died
        ({"timeout": 1}, 10_000, False),
    ],
)
def test_dead_letters_are_as_many_as_lies_explain(counts: dict[str, int], texts: int, sound: bool):
    assert (list(excess(counts, texts)) == []) is sound
