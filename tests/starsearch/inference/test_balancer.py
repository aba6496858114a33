"""Whom the balancer picks, and how an address's limit moves, on a clock that stands still."""

import pytest

from starsearch.inference.balancer import MAX_IN_FLIGHT, QUEUE_KEPT, Address, Balancer


@pytest.fixture
def clock():
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


@pytest.fixture
def balancer(clock):
    balancer = Balancer(clock)
    balancer.serve([Address(f"http://{name}/v1", name) for name in "ab"])
    return balancer


def both(balancer):
    return list(balancer.endpoints.values())


def test_the_one_with_fewer_requests_is_picked(balancer):
    a, b = both(balancer)
    a.outstanding = 1
    assert {balancer.pick() for _ in range(20)} == {b}


def test_ties_are_broken_at_random(balancer):
    assert {balancer.pick() for _ in range(50)} == set(both(balancer))


def test_one_not_tried_yet_is_preferred_and_a_tried_one_is_better_than_none(balancer, clock):
    a, b = both(balancer)
    b.outstanding = 10
    assert balancer.pick({a}) is b
    balancer.lost(b, clock.now, reachable=False)
    assert balancer.pick({a}) is a


def test_a_pause_ends_and_grows_with_each_failure_in_a_row(balancer, clock):
    a, _ = both(balancer)
    pauses = []
    for _ in range(6):
        balancer.lost(a, clock.now, reachable=True)
        pauses.append(a.paused_until - clock.now)
        clock.now = a.paused_until
        assert a.free(clock.now)
    assert [0.75 * s <= p <= s for p, s in zip(pauses, [0.5, 1, 2, 4, 8, 8], strict=True)] == [True] * 6
    balancer.answered(a, clock.now)
    balancer.lost(a, clock.now, reachable=True)
    assert a.paused_until - clock.now <= 0.5


def test_many_refusals_of_one_round_cut_once(balancer, clock):
    a, _ = both(balancer)
    a.outstanding = 41
    sent_at = clock.now
    clock.now += 1
    for _ in range(40):
        balancer.overloaded(a, sent_at)
    assert a.limit == pytest.approx(28)
    assert a.failures == 1


def test_refusals_come_faster_than_answers_and_take_no_more_than_what_was_refused(balancer, clock):
    """A queue that is full for a while refuses within milliseconds what it would answer in twenty seconds."""
    a, _ = both(balancer)
    balancer.answered(a, clock.now - 20)
    a.outstanding = 41
    for _ in range(30):
        clock.now += 0.5
        balancer.overloaded(a, clock.now)
    assert a.limit == pytest.approx(28)
    clock.now += 20
    a.outstanding = 29
    balancer.overloaded(a, clock.now)
    assert a.limit == pytest.approx(28 * 0.7)


def test_a_limit_grows_by_one_a_round_and_only_while_it_binds(balancer, clock):
    a, _ = both(balancer)
    a.limit, a.outstanding = 10.0, 10
    for _ in range(10):
        balancer.answered(a, clock.now)
    assert 10.9 < a.limit < 11.1
    a.outstanding = 3
    balancer.answered(a, clock.now)
    assert 10.9 < a.limit < 11.1
    a.limit, a.outstanding = MAX_IN_FLIGHT, MAX_IN_FLIGHT
    balancer.answered(a, clock.now)
    assert a.limit == MAX_IN_FLIGHT


def test_a_queue_lowers_the_limit_and_keeps_it_from_growing(balancer, clock):
    a, _ = both(balancer)
    a.outstanding = 20
    balancer.queued(a, QUEUE_KEPT + 1)
    assert a.limit == 19.5
    balancer.answered(a, clock.now)
    assert a.limit == 19.5
    balancer.queued(a, QUEUE_KEPT)
    balancer.answered(a, clock.now)
    assert a.limit > 19.5


def test_no_limit_falls_below_one(balancer, clock):
    a, _ = both(balancer)
    for _ in range(30):
        clock.now += 10
        balancer.overloaded(a, clock.now)
        balancer.queued(a, 1_000)
    assert a.limit == 1
    assert a.free(clock.now + 10)


def test_an_unreachable_one_takes_a_single_request_until_it_has_a_connection(balancer, clock):
    a, _ = both(balancer)
    balancer.lost(a, clock.now, reachable=False)
    clock.now += 10
    a.outstanding = 1
    assert not a.free(clock.now)
    balancer.connected(a)
    assert a.free(clock.now)


def test_a_connection_that_failed_beside_living_ones_is_only_a_pause(balancer, clock):
    a, _ = both(balancer)
    a.outstanding = 5
    balancer.lost(a, clock.now, reachable=False)
    clock.now += 10
    assert a.free(clock.now)


def test_addresses_that_stay_keep_their_state_and_new_ones_start_empty(balancer):
    a, b = both(balancer)
    a.outstanding, b.outstanding = 5, 4
    balancer.serve([a.address, Address("http://c/v1", "c")])
    kept, new = both(balancer)
    assert kept is a
    assert balancer.pick() is new


def test_silence_lasts_from_the_first_failure_to_the_next_answer(balancer, clock):
    a, b = both(balancer)
    balancer.overloaded(a, clock.now)
    clock.now += 5
    balancer.lost(b, clock.now, reachable=False)
    assert balancer.silent_seconds() == 5
    balancer.answered(b, clock.now)
    assert balancer.silent_seconds() == 0
