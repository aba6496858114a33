"""The process's threshold of garbage collection while answers are read, and after."""

import gc

from starsearch.collecting import COLLECT_AFTER, rare_collections


def test_the_last_one_out_restores_what_was_usual():
    usual = gc.get_threshold()
    first, second = rare_collections(), rare_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # begun first, ended first: as two runs in one process do
    assert gc.get_threshold() == (COLLECT_AFTER, *usual[1:])
    second.__exit__(None, None, None)
    assert gc.get_threshold() == usual


def test_it_is_restored_after_an_error():
    usual = gc.get_threshold()
    try:
        with rare_collections():
            raise ValueError
    except ValueError:
        pass
    assert gc.get_threshold() == usual
