"""Tokens are estimated on the safe side, and texts cut by them keep head and tail."""

import pytest

from starsearch.inference.tokens import CUT, cut_tokens, estimate_tokens


@pytest.mark.parametrize(
    ("text", "real"),
    [  # counted with the tokenizer of Mistral 7B v0.1
        ("The parser crashes when the configuration file is empty.", 11),
        ("TypeError: Cannot read property 'hasOwnProperty' of undefined", 13),
        ("0123456789abcdef", 13),
        ("    at Module._compile (module.js:439:25)\n", 18),
    ],
)
def test_the_estimate_is_not_below_the_tokenizer(text, real):
    assert real <= estimate_tokens(text) <= 2 * real


@pytest.mark.parametrize("unit", ["word ", "日本語", "0123", "{}();", "Ünïcödé ", "\n", "🙂"])
@pytest.mark.parametrize("tokens", [40, 100, 1_000])
def test_a_text_that_is_cut_fits_and_keeps_head_and_tail(unit, tokens):
    text = "begin" + unit * 5_000 + "end"
    cut = cut_tokens(text, tokens)
    assert estimate_tokens(cut) <= tokens
    assert estimate_tokens(cut) > 0.8 * tokens - 15
    head, _, tail = cut.partition(CUT)
    assert text.startswith(head)
    assert text.endswith(tail)
    assert head.startswith("begin")
    assert tail.endswith("end")


@pytest.mark.parametrize("text", ["", "short", "x" * 300])
def test_a_text_that_fits_is_left_alone(text):
    assert cut_tokens(text, estimate_tokens(text)) == text
