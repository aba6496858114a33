"""What makes a seed replay, and what makes a disk full; the rest of chaos/ is proved by its plants."""

import errno

import pytest

from chaos.disk import small_disk
from chaos.faults import FAULTS, schedule


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
