"""The forms of backfill and reprocess: what they refuse, what they cost more than allowed, and pages in which strangers' text is inert."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from flows.backfill import backfill
from flows.reprocess import reprocess
from starsearch.backfill import Limits, check_price, read_request
from starsearch.errors import TooMuch
from starsearch.github.client import Usage
from starsearch.models import Counts
from starsearch.store.dead_letters import DeadLetter
from tasks.explanations import SHOWN, backfill_page, failure_page, inert, item_link, reprocess_page

NOW = datetime.now(UTC)


def errors(flow, **values):
    """What Prefect's server and UI find wrong, by the field."""
    found = validate(values, parameter_schema(flow).model_dump_for_openapi(), raise_on_error=False)
    return {str(error.absolute_path[0]) if error.absolute_path else error.validator for error in found}


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"since": "7d"}, set()),
        ({"since": "2026-01-01", "until": "2026-01-31", "top": 10, "kinds": ["issue"], "stages": "store only", "dry_run": True}, set()),
        ({"since": "2026-03-01T08:00+02:00", "repositories": ["a/b"], "max_items": 5, "max_usd": 0, "confirmed": True}, set()),
        ({}, {"required"}),
        ({"since": "last week"}, {"since"}),
        ({"since": "7d", "until": "tomorrow"}, {"until"}),
        ({"since": "7d", "top": 0}, {"top"}),
        ({"since": "7d", "top": "many"}, {"top"}),
        ({"since": "7d", "repositories": ["https://github.com/a/b"]}, {"repositories"}),
        ({"since": "7d", "repositories": []}, {"repositories"}),  # an emptied list must not mean the whole followed list
        ({"since": "7d", "kinds": ["discussion"]}, {"kinds"}),
        ({"since": "7d", "kinds": []}, {"kinds"}),
        ({"since": "7d", "stages": "digest only"}, {"stages"}),
        ({"since": "7d", "max_items": 0}, {"max_items"}),
        ({"since": "7d", "max_usd": -1}, {"max_usd"}),
    ],
)
def test_the_backfill_form_names_the_field_that_is_wrong(values, wrong):
    assert errors(backfill, **values) == wrong


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({}, set()),
        ({"activate": True, "questions": "/data/questions.jsonl", "margin": 0.1, "max_items": 9, "max_usd": 1.5}, set()),
        ({"questions": "questions.csv"}, {"questions"}),
        ({"margin": 1.5}, {"margin"}),
        ({"max_usd": "much"}, {"max_usd"}),
    ],
)
def test_the_reprocess_form_names_the_field_that_is_wrong(values, wrong):
    assert errors(reprocess, **values) == wrong


@pytest.mark.parametrize("flow", [backfill, reprocess])
def test_every_field_is_described(flow):
    fields = parameter_schema(flow).properties
    assert len(fields) >= 6
    assert [name for name, field in fields.items() if not field.get("description")] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"since": "2026-02-31"}, "write a day"),
        ({"since": "2026-03-02", "until": "2026-03-01"}, "since is not before until"),
        ({"since": "7d", "repositories": ["a/b"], "top": 3}, "not both"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused_in_words(values, message):
    with pytest.raises(ValueError, match=message):
        read_request(**{"until": "0d", **values})


@pytest.mark.parametrize(
    ("limits", "days", "message"),
    [
        (Limits(), 366, None),
        (Limits(), 367, "367 days are more than a year, and come to about 1,200 items and 2.5 hours of GitHub's quota: set confirmed"),
        (Limits(confirmed=True), 3_000, None),
        (Limits(items=1_200, usd=3.5), 7, None),
        (Limits(items=1_199), 7, r"1,200 items are more than max_items allows \(1,199\)"),
        (Limits(usd=3.4), 7, r"3\.50 dollars are more than max_usd allows \(3\.40\)"),
        (Limits(items=1, usd=1), 400, "more than a year.*max_items.*max_usd"),
    ],
)
def test_what_comes_to_more_than_allowed_does_not_begin(limits, days, message):
    request = read_request(f"{days}d", "0d")
    if message is None:
        check_price(request, limits, items=1_200, usd=3.5, hours=2.5)
    else:
        with pytest.raises(TooMuch, match=message):
            check_price(request, limits, items=1_200, usd=3.5, hours=2.5)


def test_a_limit_in_dollars_refuses_what_has_no_price():
    with pytest.raises(TooMuch, match="cost is not known"):
        Limits(usd=100.0).check(1, None)


def test_a_price_is_asked_for_only_where_it_decides():
    week, years = read_request("7d", "0d"), read_request("800d", "0d")
    assert [limits.need_price(week) for limits in (Limits(), Limits(items=1), Limits(usd=1.0))] == [False, True, True]
    assert [limits.need_price(years) for limits in (Limits(), Limits(confirmed=True))] == [True, False]
    assert years.until - years.since == timedelta(days=800)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("HTTP 500", "`HTTP 500`"),
        ("<img src=x onerror=alert(1)>", "`<img src=x onerror=alert(1)>`"),  # code: a browser never sees a tag
        ("`[free](https://evil.example)`", "`'[free](https://evil.example)'`"),
        ("two\nlines | and a cell", "`two lines ¦ and a cell`"),
        ("right\u202eleft\u200b\x1b[31m", "`rightleft`"),
        ("x" * 500, f"`{'x' * 200}`"),
        ("", "none"),
    ],
)
def test_text_from_outside_is_inert(text, shown):
    assert inert(text) == shown


def test_links_are_made_of_known_characters_only():
    assert item_link("github.com", "a/b", 7) == "[`a/b#7`](https://github.com/a/b/issues/7)"
    assert item_link("github.com", "a/b](https://evil.example)", 7) == "`a/b](https://evil.example)#7`"


def test_the_page_of_a_reprocess_links_what_it_could_not_do():
    letter = DeadLetter(1, 2, "embed", "HTTP 400", "too long", 3, NOW, "abc", "https://github.com/a/b/issues/7", "a/b", 7, "t")
    page = "\n\n".join(reprocess_page(Counts(items=3, dead_letters=1), "abc", None, [letter], host="github.com"))
    assert "Index version `abc` is built and serves nothing yet" in page
    assert "| [`a/b#7`](https://github.com/a/b/issues/7) | `embed` | `HTTP 400` |" in page


def test_the_page_of_a_run_that_failed_says_why_in_full_and_how_to_go_on():
    request = read_request("7d", "0d", ["a/b"], kinds=["issue"])
    page = "\n\n".join(failure_page("Backfill", request, TooMuch("`so` <b> | much, " * 30 + "or confirm it")))
    assert page.startswith("# Backfill: not done\n\nAsked for: issues of 1 named repositories")
    assert "`TooMuch: 'so' <b> ¦ much, " in page
    assert "or confirm it`\n" in page
    assert "the same run again goes on" in page
    assert "<" not in re.sub(r"`[^`]*`", "", page)


def test_the_page_tells_reasons_and_no_strangers_words():
    evil = "<script>alert(1)</script> [x](https://evil.example) | y"
    letter = DeadLetter(1, 1, "summarize", "HTTP 500", evil, 3, NOW, "abc", "https://evil.example", "a/b", 7, evil)
    failed = {f"no/such-{n}": evil for n in range(SHOWN + 5)}
    request = read_request("7d", "0d", ["a/b"], kinds=["issue"])
    counts = Counts(items=3, inserted=1, unchanged=2, dead_letters=1, cost_usd=None)
    page = "\n\n".join(backfill_page(request, counts, failed, Usage(4, 5), [letter], host="ghe.example", digested=False))
    assert "Asked for: issues of 1 named repositories" in page
    assert "| items read | 3: 1 new, 0 changed, 2 as they were |" in page
    assert "| cost | unknown: a model has no price" in page
    assert "| GitHub | 4 requests, 5 points |" in page
    assert "| [`a/b#7`](https://ghe.example/a/b/issues/7) | `summarize` | `HTTP 500` |" in page
    assert "- and 5 more" in page
    assert "Only stored, as asked" in page
    without_code = re.sub(r"`[^`]*`", "", page)
    assert "evil" not in without_code
    assert "<" not in without_code
