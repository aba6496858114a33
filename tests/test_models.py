"""Parsing and cleaning: what is taken, what is rejected, and with which words."""

import sys
from datetime import UTC, datetime, timedelta

import pytest

from starsearch.errors import Rejected
from starsearch.models import COMMENT_CHARACTERS, IndexVersion, capped_comments, parse_item


def test_null_body_becomes_empty(row):
    assert parse_item(row(body=None)).body == ""


def test_nul_and_lone_surrogates_are_replaced_and_newlines_normalized(row):
    item = parse_item(row(title="a\0b", body="x\ud800y\r\nz\rw"))
    assert item.title == "a\ufffdb"
    assert item.body == "x\ufffdy\nz\nw"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"type": "discussion"}, "type"),  # unknown type
        ({"repo": "no-slash"}, "owner/name"),
        ({"repo": None}, "repo"),
        ({"number": 0}, "number"),
        ({"number": 2**40}, "number"),  # would not fit the column
        ({"number": "7"}, "number"),  # text is not a number
        ({"number": True}, "number"),
        ({"title": None}, "title"),
        ({"title": ""}, "title"),
        ({"state": "reopened"}, "state"),
        ({"updated_at": (datetime.now(UTC) + timedelta(days=2)).isoformat()}, "24 hours in the future"),
        ({"created_at": 1700000000}, "ISO 8601"),  # seconds or milliseconds?
        ({"created_at": "yesterday"}, "created_at"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "created_at: a timestamp in UTC"),  # of the year 0
        ({"closed_at": "9999-12-31T23:59:59-14:00"}, "closed_at: a timestamp in UTC"),
        # more than an index of PostgreSQL takes
        ({"url": "https://github.com/" + "x" * 2_000}, "url: longer than 2,000 bytes"),
        ({"author": "\u023a" * 501}, "author: longer than 1,000 bytes"),
        ({"labels": ["bug", "x" * 1_001]}, "labels.1: longer"),
        ({"labels": ["bug"] * 1_001}, "labels: .* 1000 items"),
        ({"node_id": "x" * 1_001}, "node_id: longer"),
        ({"host": "x" * 256}, "host: longer"),
        ({"title": "x" * 4_001}, "title: longer"),
        ({"body": "x" * 4_000_001}, "body: longer"),
        ({"comments": [{"body": "why?", "author": "x" * 1_001}]}, "comments.0.author: longer"),
    ],
)
def test_bad_field_is_rejected_by_name(row, fields, reason):
    with pytest.raises(Rejected, match=reason):
        parse_item(row(**fields))


@pytest.mark.parametrize("value", [None, 3, "text", [], [1]])
def test_what_is_not_an_object_is_rejected(value):
    with pytest.raises(Rejected, match="not a JSON object"):
        parse_item(value)


def test_a_clock_that_is_a_few_hours_ahead_is_tolerated(row):
    soon = datetime.now(UTC) + timedelta(hours=3)
    assert parse_item(row(updated_at=soon.isoformat())).updated_at == soon


def test_a_rejection_with_many_reasons_stays_short(row):
    comments = [{"author": "a", "body": 5}] * 80
    with pytest.raises(Rejected, match="and 77 more"):
        parse_item(row(comments=comments))


def test_what_is_nested_too_deep_to_be_told_is_rejected(row):
    deep = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    with pytest.raises(Rejected, match="nested too deep"):
        parse_item(row(url=deep))


def test_as_much_as_github_allows_is_taken(row):
    text = "\U0001f30d"
    item = parse_item(row(title=text * 256, body=text * 65_536, author="a" * 39, labels=[text * 50] * 100))
    assert (len(item.title), len(item.body), len(item.labels)) == (256, 65_536, 100)


def test_an_empty_node_id_is_none(row):
    assert parse_item(row(node_id="")).node_id is None


def test_merged_at_means_merged(row):
    assert parse_item(row(type="pull_request", state="closed", merged_at="2026-03-02T10:00:00Z")).state == "merged"


def test_missing_state_follows_closed_at(row):
    assert parse_item(row(state=None, closed_at="2026-03-02T10:00:00Z")).state == "closed"
    assert parse_item(row(state=None)).state == "open"


def test_url_of_another_scheme_is_replaced(row):
    assert parse_item(row(url="javascript:alert(1)")).url == "https://github.com/quillcap/marlframe/issues/1"


def test_comment_author_may_be_a_user_object(row):
    item = parse_item(row(comments=[{"author": {"username": "ada", "id": 3}, "body": "why?"}]))
    assert item.comments[0].author == "ada"


def test_naive_times_are_utc(row):
    assert parse_item(row(created_at="2026-03-01T10:00:00")).created_at == datetime(2026, 3, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("change", [{"title": "Other"}, {"body": "Other"}, {"state": "closed"}, {"comments": [{"body": "new"}]}])
def test_content_hash_follows_what_a_digest_depends_on(row, change):
    assert parse_item(row(**change)).content_hash != parse_item(row()).content_hash


@pytest.mark.parametrize("change", [{"labels": ["bug"]}, {"author": "ada"}, {"updated_at": "2026-03-03T10:00:00Z"}, {"comments_count": 9}])
def test_content_hash_ignores_everything_else(row, change):
    assert parse_item(row(**change)).content_hash == parse_item(row()).content_hash


def test_content_hash_keeps_fields_apart(row):
    assert parse_item(row(title="ab", body="c")).content_hash != parse_item(row(title="a", body="bc")).content_hash


def test_only_the_newest_comments_count_and_under_a_cap():
    kept = capped_comments([f"comment {n}" for n in range(9)])
    assert kept == tuple(f"comment {n}" for n in range(4, 9))
    long = capped_comments(["old", "x" * COMMENT_CHARACTERS])
    assert sum(map(len, long)) == COMMENT_CHARACTERS


def test_partition_is_creation_or_the_earliest_time_known(row):
    item = parse_item(row(created_at=None, closed_at="2026-03-01T00:00:00Z"))
    assert item.partition_at == datetime(2026, 3, 1, tzinfo=UTC)
    assert parse_item(row(created_at=None, updated_at=None)).partition_at is None


def test_index_version_changes_with_each_of_its_parts():
    parts = ("model", "revision", "384", "recipe", "summarizer", "v1")
    base = IndexVersion(parts[0], parts[1], 384, *parts[3:])
    fields = ("embedding_model", "embedding_revision", "text_recipe", "summary_model", "prompt_version")
    others = [IndexVersion(**{**vars(base), field: "other"}) for field in fields]
    fingerprints = {version.fingerprint for version in [base, *others, IndexVersion(**{**vars(base), "dimensions": 768})]}
    assert len(fingerprints) == 7
    assert base.name.startswith(base.fingerprint[:12])
