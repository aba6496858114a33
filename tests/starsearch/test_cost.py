"""Prices with their sources, and the arithmetic that every figure in dollars rests on."""

from dataclasses import replace
from pathlib import Path

import pytest

from starsearch.cost import Prices, bill, compare, cost, digested, estimate, read_prices, total_cost
from starsearch.errors import PreconditionMissing
from starsearch.models import Usage

PRICES = Prices.model_validate(
    {
        "models": {
            "api": {"prompt": 1.0, "cached": 0.1, "completion": 4.0, "source": "s", "date": "2026-01-01"},
            "ours": {"engine": "card", "engines": 2, "source": "s", "date": "2026-01-01"},
        },
        "engines": {"card": {"usd_per_hour": 3.0, "source": "s", "date": "2026-01-01"}},
    }
)


def usage(purpose="summary", model="api", items=1_000, prompt=800_000, cached=0, completion=120_000, **fields):
    values = {"calls": items, "failed": 0, "requests": items, "unanswered": 0, "seconds": 60.0, "hours": 0.5} | fields
    return Usage(purpose, model, items=items, prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion, **values)


EMBEDDED = usage("embedding", "minilm-l6-v2", prompt=70_000, completion=0, requests=16)


def test_every_built_in_price_names_its_source_and_date():
    prices = read_prices()
    entries = [*prices.models.values(), *prices.engines.values()]
    assert len(entries) > 8
    assert all(entry.source and entry.date.startswith("2026") for entry in entries)
    assert all(engine.speed_source for engine in prices.engines.values() if engine.tokens_per_second)


@pytest.mark.parametrize(
    ("spent", "dollars"),
    [
        (usage(), 0.8 + 0.48),
        (usage(cached=400_000), 0.4 + 0.04 + 0.48),  # half of the prompt at a tenth of the price
        (usage(model="api-2026-01-31"), 1.28),  # the same model under its dated name
        (usage(model="ours"), 0.5 * 2 * 3.0),  # by the hour, whatever the tokens
        (usage(model="nobody's"), None),  # no price is not a price of nothing
        (usage(model="nobody's", requests=0, prompt=0, completion=0), 0.0),
    ],
)
def test_cost_of_a_model(spent, dollars):
    assert cost(spent, PRICES) == (None if dollars is None else pytest.approx(dollars))


def test_cached_tokens_without_a_price_of_their_own_cost_as_much_as_others():
    prices = read_prices()
    assert cost(usage(model="gpt-6-luna", cached=400_000), prices) == cost(usage(model="gpt-6-luna"), prices)


def test_one_model_without_a_price_leaves_the_total_unknown_and_is_named():
    known, unknown = usage(), usage("embedding", "nobody's", prompt=70_000, completion=0)
    assert total_cost([known, unknown], PRICES) is None
    told = bill([known, unknown], PRICES)
    assert (told["cost_usd"], told["usd_per_million_items"], told["unpriced"]) == (None, None, ["nobody's"])
    assert (told["prompt_tokens"], told["completion_tokens"], told["llm_requests"]) == (870_000, 120_000, 1_000)


def test_dollars_per_million_items_are_those_of_what_was_digested():
    told = bill([usage(failed=100, items=900), replace(usage("embedding", prompt=0, completion=0), items=900)], PRICES)
    assert told["usd_per_million_items"] == pytest.approx(1.28 / 900 * 1e6, abs=0.01)
    assert digested([usage(items=5)]) == 0
    assert bill([], PRICES)["cost_usd"] == 0.0


def test_an_estimate_goes_by_the_ledger_at_the_price_of_the_models_in_use():
    seen = [usage(model="embedded-extractive-v1"), EMBEDDED]
    free = estimate(5_000, seen, ("embedded-extractive-v1", "minilm-l6-v2"), read_prices())
    assert (free.tokens, free.cost_usd, free.engine_hours) == (5 * 990_000, 0.0, 2.5)
    luna = estimate(5_000, seen, ("gpt-6-luna", "minilm-l6-v2"), read_prices())
    assert luna.cost_usd == pytest.approx(5 * (0.08 + 0.06))
    assert luna.usd_per_million_items == 140
    unknown = estimate(5_000, seen, ("nobody's", "minilm-l6-v2"), read_prices())
    assert (unknown.tokens, unknown.cost_usd) == (5 * 990_000, None)
    hours = estimate(5_000, [usage(model="ours"), EMBEDDED], ("ours", "minilm-l6-v2"), PRICES)
    assert (hours.digest_hours, hours.engine_hours) == (2.5, 5.0)


@pytest.mark.parametrize("models", [(), ("api", "api")])
def test_without_experience_or_a_version_nothing_is_estimated(models):
    assert set(vars(estimate(10, [], models, PRICES)).values()) == {None}


def test_apis_and_own_gpus_compare_as_worked_out_by_hand():
    """800 + 120 tokens an item, 100,000 items a day: figures of a published comparison, which was made without this code."""
    compared = compare([usage()], read_prices(), items_per_day=100_000)
    apis = {api["model"]: api["usd_per_million_items"] for api in compared.apis}
    assert (apis["gpt-6-luna"], apis["gpt-5-nano"], apis["gpt-5.4-mini"], apis["gpt-6-sol"]) == (140, 88, 1_140, 2_800)
    assert list(apis) == sorted(apis, key=apis.get)
    card = next(engine for engine in compared.engines if engine["engine"] == "h100-runpod-low")
    assert card["usd_per_million_items_busy"] == pytest.approx(18.5, abs=0.1)  # 23 at 1,152 tokens, scaled to 920
    assert card["usd_per_million_items_always_on"] == pytest.approx(646, abs=1)
    assert card["busy_share"] == pytest.approx(41.2 / 60 / 24, abs=0.0001)  # minutes a day
    only_luna = Prices.model_validate({"models": {"gpt-6-luna": read_prices().models["gpt-6-luna"]}, "engines": read_prices().engines})
    first = compare([usage()], only_luna, items_per_day=100_000).engines[0]
    assert first["break_even_items_per_day"] == pytest.approx(461_000, rel=0.001)


def test_an_engine_too_slow_for_the_day_is_counted_several_times_and_may_never_break_even():
    slow = Prices.model_validate(
        {
            "models": {"api": PRICES.models["api"]},
            "engines": {"slow": {"usd_per_hour": 100, "tokens_per_second": 920, "source": "s", "date": "2026-01-01"}},
        }
    )
    engine = compare([usage()], slow, items_per_day=100_000).engines[0]
    assert (engine["engines"], engine["break_even_items_per_day"]) == (2, None)
    assert compare([], slow, items_per_day=1) is None


def test_own_prices_win_over_the_built_in_ones(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(
        '[models.summarizer]\nengine = "rack"\nengines = 3\nsource = "our bill"\ndate = 2026-10-01\n'
        '[models.gpt-6-luna]\nprompt = 0.09\ncompletion = 0.5\nsource = "our contract"\ndate = "2026-10-01"\n'
        '[engines.rack]\nusd_per_hour = 1.5\nsource = "our bill"\ndate = "2026-10-01"\n'
    )
    prices = read_prices(path)
    assert cost(usage(model="summarizer"), prices) == 0.5 * 3 * 1.5
    assert prices.of("gpt-6-luna").prompt == 0.09
    assert prices.of("gpt-5-nano") == read_prices().of("gpt-5-nano")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "Expected"),
        ('[models.a]\nprompt = 1\nsource = "s"\ndate = "d"\n', "prompt and completion"),
        ('[models.a]\nengine = "none"\nsource = "s"\ndate = "d"\n', "no engine 'none'"),
        ("[models.a]\nprompt = 1\ncompletion = 1\n", "models.a.source"),
        ('[models.a]\nprompt = -1\ncompletion = 1\nsource = "s"\ndate = "d"\n', "greater than or equal to 0"),
        ('[models.a]\nprice = 1\nsource = "s"\ndate = "d"\n', "models.a"),
        ("models = 3\n", "STARSEARCH_PRICES"),
        ("[modles.a]\nprompt = 1\n", "modles"),
    ],
)
def test_a_file_that_is_no_price_table_is_refused_and_named(tmp_path, text, reason):
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(PreconditionMissing, match=reason) as caught:
        read_prices(path)
    assert "prices.toml" in str(caught.value)


def test_a_price_file_that_is_not_there_is_a_precondition():
    with pytest.raises(PreconditionMissing, match=r"no/such\.toml"):
        read_prices(Path("no/such.toml"))
