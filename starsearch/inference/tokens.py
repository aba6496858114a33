"""How many tokens a text will be, without the model's tokenizer, and cutting by that. Pure.

Fitted to the 32,000-word vocabulary of Mistral 7B on 1,500 real items, the least thrifty of the vocabularies in use, 15 % added:
the estimate is too small for 1 of 100 texts, by 5 % at most; OpenAI's o200k needs 1.4 times fewer. An engine that counts otherwise
says so (HTTP 400), and is sent less.
"""

import numpy as np
from numpy.typing import NDArray

HEAD = 0.7  # of what is kept of a long text; its end often holds the resolution
CUT = "\n[…]\n"
_MOST = 2.3  # tokens that one character can be estimated at

_ASCII = np.full(128, 0.96)  # punctuation
_ASCII[ord("a") : ord("z") + 1] = 0.25
_ASCII[ord("A") : ord("Z") + 1] = 0.43
_ASCII[ord("0") : ord("9") + 1] = 1.5
_ASCII[ord(" ")] = 0.14
_ASCII[ord("\n")] = _ASCII[ord("\t")] = 1.2
# by code point up to the first CJK block; Latin letters with marks, then other alphabets, then one for all that follow
_WEIGHTS = np.concatenate([_ASCII, np.full(0x250 - 128, _MOST), np.full(0x2E80 - 0x250, 1.05), [1.45]])


def estimate_tokens(text: str) -> int:
    return int(np.ceil(_weights(text).sum()))


def cut_tokens(text: str, tokens: int) -> str:
    """The text's head and tail, together at most so many tokens."""
    if len(text) * _MOST <= tokens:
        return text
    position = np.cumsum(_weights(text))
    if not len(position) or position[-1] <= tokens:
        return text
    kept = max(tokens - estimate_tokens(CUT), 2)
    head = int(np.searchsorted(position, kept * HEAD, side="right"))
    tail = int(np.searchsorted(position, position[-1] - kept * (1 - HEAD), side="left")) + 1
    return text[:head] + CUT + text[tail:]


def _weights(text: str) -> NDArray[np.float64]:
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    weights: NDArray[np.float64] = _WEIGHTS[np.minimum(codes, len(_WEIGHTS) - 1)]
    return weights
