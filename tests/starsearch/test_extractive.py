"""Extractive summaries: the text's own sentences, few, early, not repeated."""

import time

from starsearch.extractive import MAX_WORDS, summarize

TEXT = """Playback stops with the screen off
## Steps
Thanks for the app. I use it every day.
When the screen is locked for ten minutes, the system kills the playback service.
<!-- please fill in the template -->
```
E/AudioFlinger: dead
```
When the screen is locked for ten minutes, the system kills the playback service again.
The notification of the playback service disappears at the same time, and nothing is logged."""


def test_summary_is_made_of_the_texts_sentences():
    assert all(sentence in TEXT for sentence in summarize(TEXT).split(". ") if sentence)


def test_code_comments_and_title_are_left_out():
    summary = summarize(TEXT)
    assert "AudioFlinger" not in summary
    assert "template" not in summary
    assert "Playback stops with the screen off" not in summary


def test_repetition_is_penalized():
    assert summarize(TEXT).count("locked for ten minutes") == 1


def test_a_text_without_sentences_falls_back_to_what_there_is():
    assert summarize("Only a title") == "Only a title"
    assert summarize("Title\n+1") == "+1"


def test_delimiter_lines_are_not_part_of_the_text():
    assert summarize('<item type="issue" state="open">\nTitle here\n</item>') == "Title here"


def test_length_is_bounded():
    assert len(summarize("T\n" + "word " * 5_000).split()) <= MAX_WORDS + 1


def test_hostile_text_is_bounded_in_time():
    for unit in ("<!--", "<a", "![a](", "[a](", "```", "a. B "):
        started = time.process_time()
        summarize("title\n" + unit * (24_000 // len(unit)))
        assert time.process_time() - started < 20  # quadratic patterns took minutes; the limit is far above the noise
