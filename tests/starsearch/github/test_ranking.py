"""The walk down the stars, over real HTTP: three million repositories, searches cut short, and stars that do not hold still."""

import itertools
from contextlib import asynccontextmanager

import numpy as np
import pytest

from starsearch.errors import RateLimited, StarsearchError
from starsearch.github.client import open_github
from starsearch.github.credentials import Credential, Token
from starsearch.github.ranking import FOUND, RESULTS, Span, read_top
from tests.standin.search import RepositoryIndex

SEARCH = "SearchRepositories"
WANTED = 42_000


pytestmark = pytest.mark.usefixtures("no_naps")


@asynccontextmanager
async def opened(standin):
    async with open_github(standin.graphql_url, [Credential(Token("token 1 of 1", "token-a"))]) as github:
        yield github


async def top(standin, wanted):
    async with opened(standin) as github:
        return await read_top(github, wanted)


def index(world, stars, *, forks=(), archived=()):
    """Let search find repositories with these stars, most first, created a minute after one another."""
    stars = -np.sort(-np.array(stars, np.int64))
    numbers = np.arange(len(stars))
    flags = np.isin(numbers, archived) | np.isin(numbers, forks).astype(np.int64) << 1
    world._index = RepositoryIndex(stars, 1_500_000_000 + numbers * 60, flags, 1_500_000_000 + numbers, {})
    world.version += 1


def truth(world, number):
    """Database ids and stars of the first `number`, forks left out, by stars and id."""
    kept = world.index.flags >> 1 == 0
    pairs = sorted(zip((-world.index.stars[kept]).tolist(), world.index.ids[kept].tolist(), strict=True))[:number]
    return [(number, -negative) for negative, number in pairs]


def told(facts):
    return [(fact.database_id, fact.stars) for fact in facts]


def but_for_the_edge(pairs, edge):
    return {pair for pair in pairs if pair[1] > edge}


@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_the_top_40_000_of_three_million_cost_less_than_460_requests(world, standin, seed):
    world.search_index(seed=seed)
    found = await top(standin, WANTED)
    expected = truth(world, WANTED)
    edge = expected[-1][1]
    assert but_for_the_edge(told(found), edge) == but_for_the_edge(expected, edge)
    assert [fact.stars for fact in found] == [stars for _, stars in expected]
    assert found == sorted(found, key=lambda fact: (-fact.stars, fact.node_id))
    assert len({fact.node_id for fact in found}) == WANTED
    assert standin.counters.requests[SEARCH] <= 460
    assert standin.counters.all_points <= 460


async def test_every_search_stays_below_what_github_looks_at(world, standin):
    world.search_index()
    await top(standin, WANTED)
    searches = {request.variables["search"] for request in standin.counters.log}
    counts = [world.index.find(search)[0] for search in searches]
    assert max(counts) < FOUND
    assert sum(950 <= count <= 1_500 for count in counts) >= 0.9 * len(counts)


async def test_a_wanted_few_are_not_read_to_the_end_of_the_range(world, standin):
    world.search_index()
    assert len(await top(standin, 150)) == 150
    assert standin.counters.all_requests == 2


async def test_forks_stay_out_and_archived_ones_stay_in(world, standin):
    index(world, [50, 40, 30, 20], forks=[1], archived=[2])
    found = await top(standin, 10)
    assert [fact.stars for fact in found] == [50, 30, 20]
    assert [fact.archived for fact in found] == [False, True, False]


# few, none with many stars, none at all, or all of them with the most: an Enterprise Server
@pytest.mark.parametrize(
    "stars",
    [
        [],
        [0],
        [0] * 1_500,
        [1] * 1_100 + [0] * 1_100,
        [7, 7, 7, 3, 1, 0, 0],
        list(range(5_000)),
        [40_000 + n for n in range(6_000)],
        [2_000_000] * 4_500,
    ],
    ids=["none", "one", "all without", "two values", "few", "even", "all above the first range", "one huge value"],
)
async def test_an_index_of_any_shape_is_read_to_its_end(world, standin, stars):
    index(world, stars)
    found = await top(standin, 20_000)
    assert sorted(told(found)) == sorted(truth(world, 20_000))
    assert standin.counters.all_requests < 10 + len(stars) / 20


async def test_one_number_of_stars_with_thousands_of_repositories_is_split_by_age(world, standin):
    index(world, [9] * 400 + [8] * 9_000 + [7] * 300)
    found = await top(standin, 20_000)
    assert sorted(told(found)) == sorted(truth(world, 20_000))
    assert any("created:" in request.variables["search"] for request in standin.counters.log)


async def test_stars_that_move_while_paging_lose_nobody_who_stays_above_the_edge(world, standin):
    """Somebody gains or loses a star after every page; nobody is listed twice."""
    stars = [30_000 - 7 * n for n in range(3_000)]
    movers = [world.add_repository(f"quillcap/r{n}", stars=value) for n, value in enumerate(stars)]
    turns = itertools.count()

    def move():
        turn = next(turns)
        mover = movers[turn * 97 % len(movers)]
        world.change_repository(mover, stars=mover.stars + (3 if turn % 2 else -3))

    world.after(SEARCH, move)
    found = await top(standin, 2_500)
    assert len({fact.node_id for fact in found}) == len(found) == 2_500
    # a page that begins one place later shows the same one twice, one that begins earlier skips one: never more than one a turn
    missing = {mover.node_id for mover in movers[:2_490]} - {fact.node_id for fact in found}
    assert len(missing) <= 2


async def test_one_that_gains_a_star_between_two_ranges_is_found(world, standin):
    """It stands just below the range that is being read, and just above the next one when that is read."""
    movers = [world.add_repository(f"quillcap/r{n}", stars=40_000 - n) for n in range(3_000)]
    await top(standin, 3_000)
    ends = [request.variables["search"] for request in standin.counters.log]
    first = next(search for search, following in itertools.pairwise(ends) if search != following)
    lowest = min(fact.stars for fact in await top(standin, 1_000))
    climber = next(mover for mover in movers if mover.stars == lowest - 1)
    done = itertools.count(1)
    world.after(SEARCH, lambda: next(done) == RESULTS // 100 and world.change_repository(climber, stars=lowest))
    assert climber.node_id in {fact.node_id for fact in await top(standin, 3_000)}
    assert first


async def test_a_name_that_changes_hands_while_paging_is_listed_once(world, standin):
    first = world.add_repository("quillcap/marlframe", stars=40_000)
    for n in range(150):
        world.add_repository(f"quillcap/r{n}", stars=39_000 - n)
    second = world.add_repository("quillcap/other", stars=31_000)

    def change():
        if second.full_name == "quillcap/other":
            world.rename_repository(first, "quillcap/elsewhere")
            world.rename_repository(second, "quillcap/marlframe")

    world.after(SEARCH, change)
    found = await top(standin, 500)
    assert [fact.node_id for fact in found if fact.full_name == "quillcap/marlframe"] == [second.node_id]


@pytest.mark.parametrize(
    "kind", ["incomplete", "resource_limits", "wrong_null", "forbidden", "502", "500", "drop", "html", "secondary_200"]
)
async def test_a_search_that_goes_wrong_once_is_asked_again(world, standin, kind):
    world.search_index(200_000)
    standin.faults.add(kind, SEARCH, after=3, times=2, seconds=0)
    found = await top(standin, 2_000)
    expected = truth(world, 2_000)
    assert standin.faults.met[kind] == 2
    assert but_for_the_edge(told(found), expected[-1][1]) == but_for_the_edge(expected, expected[-1][1])


@pytest.mark.parametrize("kind", ["incomplete", "resource_limits", "wrong_null", "forbidden", "502"])
async def test_a_search_that_stays_incomplete_is_never_handed_out(world, standin, kind):
    world.search_index(200_000)
    standin.faults.add(kind, SEARCH, after=3, times=None)
    with pytest.raises(StarsearchError):
        await top(standin, 2_000)
    assert standin.faults.met[kind] < 100


async def test_the_refusal_names_the_search_and_what_is_missing(world, standin):
    index(world, range(31_000, 31_050))
    standin.faults.add("incomplete", SEARCH, times=None)
    with pytest.raises(StarsearchError, match=r"stars:>=30000.*25 of 50 results.*stays as it was"):
        await top(standin, 2_000)


async def test_a_used_up_quota_stops_the_walk(world, standin):
    world.search_index(200_000)
    standin.faults.add("exhausted", SEARCH, after=5)
    with pytest.raises(RateLimited):
        await top(standin, 2_000)


# the search as GitHub reads it
@pytest.mark.parametrize(
    ("span", "search"),
    [
        (Span(30_000), "stars:>=30000 is:public sort:stars-desc"),
        (Span(5, 9), "stars:5..9 is:public sort:stars-desc"),
        (Span(0).narrower(), "stars:>=1 is:public sort:stars-desc"),
        (Span(0, 1).narrower(), "stars:1..1 is:public sort:stars-desc"),
        (Span(99, 100).narrower(), "stars:100..100 is:public sort:stars-desc"),
        (Span(100, 10_000).narrower(), "stars:1001..10000 is:public sort:stars-desc"),
    ],
)
def test_a_span_is_written_and_narrowed(span, search):
    assert span.search == search
