"""How strangers' text is shown: pure functions."""

from dataclasses import replace

import pytest

from starsearch.models import Hit, Place
from starsearch.web import cursors, plots
from starsearch.web.shown import GIST, ShownHit, cited, gist, marked, safe_link, shown, with_parameters, words_of


@pytest.fixture
def hit() -> Hit:
    return Hit(1, "https://github.com/a/b/issues/7", "a/b", 7, "issue", "open", None, [], "t", "s", "model", 1.0)


@pytest.mark.parametrize(
    ("url", "shown_as"),
    [
        ("https://github.com/a/b/issues/1", "https://github.com/a/b/issues/1"),
        ("http://ghe.example/a/b/pull/1", "http://ghe.example/a/b/pull/1"),
        ("javascript:alert(1)", None),
        ("JaVaScRiPt:alert(1)", None),
        (" javascript:alert(1)", None),
        ("data:text/html,<script>", None),
        ("//elsewhere.example", None),
        ("https:/", None),
        ("http://[", None),
        ("", None),
        (None, None),
    ],
)
def test_links_lead_to_web_pages_only(url: str | None, shown_as: str | None):
    assert safe_link(url) == shown_as


def test_words_are_marked_in_any_form_and_everything_is_escaped():
    text = marked("<b>Leaking</b> sockets & a leak", words_of("socket leaks"))
    assert str(text) == "&lt;b&gt;<mark>Leaking</mark>&lt;/b&gt; <mark>sockets</mark> &amp; a <mark>leak</mark>"


def test_a_gist_begins_where_the_question_is_answered():
    summary = "It all began long ago. " + "Nothing of interest happened in between. " * 8 + "The socket leaks after a reset. The end."
    assert gist(summary, words_of("socket leak")) == "… The socket leaks after a reset. The end."
    assert len(gist(summary, words_of("unrelated"))) <= GIST + 2


def test_why_names_each_word_once(hit):
    found = ShownHit(
        replace(hit, title="Leaking pools", summary="A pool leaks. So leak pools.", scores={"vector": 0.5}), words_of("leak pool")
    )
    assert found.why == "meaning 0.50 · words: leaking, pools"


def test_what_shows_nothing_is_not_shown():
    assert shown("a\x1b[31mb\u202ec\u200bd\U000e0041e\tf\n") == "abcde\tf\n"


def test_citations_lead_to_digests_and_nothing_else_becomes_a_link(hit):
    text = cited("<b>Yes</b> [1], [2] and [x] [99999]", {1: hit})
    link = '<a class="cite" href="/items/a/b/7">[1]</a>'
    assert str(text) == f"&lt;b&gt;Yes&lt;/b&gt; {link}, [2] and [x] [99999]"


def test_only_what_was_chosen_is_in_an_address():
    assert with_parameters("/", {"q": "a&b", "repo": None, "state": ""}) == "/?q=a%26b"
    assert with_parameters("/", {}) == "/"


def test_a_cursor_gives_back_what_went_in():
    places = [Place(2**40, 1.2345, 0.9876, 1.0), Place(7, -0.25, None, 0.0)]
    cursor = cursors.pack(b"key", "question", "0123456789ab", places)
    assert cursors.unpack(b"key", "question", cursor) == ("0123456789ab", places)
    for key, question in ((b"other", "question"), (b"key", "other")):
        with pytest.raises(cursors.BadCursor):
            cursors.unpack(key, question, cursor)


@pytest.mark.parametrize("values", [[], [0], [0, 0], [5, 1, 3], [10**12]])
def test_plots_stay_in_their_frame(values: list[float]):
    drawn = plots.bars(values, 'a "label" <with> & characters')
    assert 'aria-label="a &#34;label&#34; &lt;with&gt; &amp; characters"' in drawn
    assert "nan" not in drawn
    assert "-" not in drawn.split(">", 1)[1].replace("-scaling", "")
