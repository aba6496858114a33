"""From an item to the messages of a chat request, and to the text that is embedded. Pure.

The constant part comes first and whole, so that an engine can reuse its prefix; the item comes last, fenced and declared
untrusted. Repository, number and author stay out: a summary must not depend on who asked, and equal texts are summarized once.

A prompt is a file named by its version, prompts/VERSION.txt, and never changes once used; VERSION-again.txt is added to it when
the first answer did not pass the gate.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from starsearch.inference.tokens import cut_tokens, estimate_tokens
from starsearch.models import DueItem, capped_comments
from starsearch.untrusted import fence, visible

PROMPT_VERSION = "v2"
MAX_SUMMARY_TOKENS = 220  # 120 words of English with identifiers
SEED = 0
# 99 % of real items fit whole. Fixed rather than the engine's context, so that keys do not change with --max-model-len.
MAX_ITEM_TOKENS = 4_000
MAX_TITLE_TOKENS = 300
COMMENTS_SHARE = 1 / 3  # of what an item may take; the newest comments often hold the resolution
MIN_ITEM_TOKENS = 100
GAPS_TOKENS = 6  # between the three
TEMPLATE_TOKENS = 60  # the fence, and what a chat template adds
MIN_CONTEXT_TOKENS = 1_024  # instructions, an answer at twice the length, and a paragraph of item
SHRINK = 4  # how much less is sent to an engine that found the text too long

EMBEDDED_CHARACTERS = 350
# Measured on the 66 sample questions (docs/decisions/0004): as good as longer texts, and twice as fast.
TEXT_RECIPE = f"title-summary-{EMBEDDED_CHARACTERS}c-1"


@dataclass(frozen=True)
class Prompt:
    """What is asked, and the key under which the answer may be reused. `text` is what the model sees of the item."""

    system: str
    user: str
    max_tokens: int
    version: str
    text: str = field(repr=False)

    def key(self, model: str) -> bytes:
        parts = (model, self.version, f"temperature=0 seed={SEED} max_tokens={self.max_tokens}", self.user)
        return hashlib.sha256("\0".join(parts).encode()).digest()

    def messages(self, *, one_turn: bool) -> list[dict[str, str]]:
        return chat(self.system, self.user, one_turn=one_turn)


def chat(system: str, user: str, *, one_turn: bool) -> list[dict[str, str]]:
    """In one turn for models whose template has no system role."""
    if one_turn:
        return [{"role": "user", "content": f"{system}\n\n{user}"}]
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def prompt_for(
    item: DueItem, *, context_tokens: int | None, version: str = PROMPT_VERSION, shrinks: int = 0, again: bool = False
) -> Prompt:
    """The prompt for one item, cut to the engine's context where that is known.

    `shrinks`: how often an engine found the text too long. `again`: the stricter one, for an answer that did not pass the gate;
    it may be twice as long, because the first was perhaps cut off.
    """
    system = instructions(version, again=again)
    max_tokens = MAX_SUMMARY_TOKENS * (2 if again else 1)
    room = MAX_ITEM_TOKENS
    if context_tokens:
        room = min(room, context_tokens - estimate_tokens(system) - max_tokens - TEMPLATE_TOKENS)
    text = _item_text(item, max(room, MIN_ITEM_TOKENS) // SHRINK**shrinks)
    return Prompt(system, fence("item", text, type=item.type, state=item.state), max_tokens, version, text)


def embedded_text(title: str, summary: str) -> str:
    """What an item's vector means: its title and summary, cut at a word. See TEXT_RECIPE."""
    text = f"{title}\n{summary}".strip()
    return text if len(text) <= EMBEDDED_CHARACTERS else text[:EMBEDDED_CHARACTERS].rsplit(maxsplit=1)[0]


@cache
def instructions(version: str, *, again: bool = False) -> str:
    """The constant part. The stricter one begins with the plain one, whose prefix an engine has at hand."""
    folder = resources.files("starsearch.inference") / "prompts"
    names = (f"{version}.txt", f"{version}-again.txt") if again else (f"{version}.txt",)
    return "\n\n".join((folder / name).read_text("utf-8").strip() for name in names)


def _item_text(item: DueItem, tokens: int) -> str:
    """Title, body and newest comments as a reader of the page sees them. Each is cut by itself, head and tail kept."""
    title = cut_tokens(visible(item.title), min(MAX_TITLE_TOKENS, tokens // 3))
    comments = "\n\n".join(f"Comment: {visible(comment)}" for comment in capped_comments(list(item.comments)))
    left = tokens - estimate_tokens(title) - GAPS_TOKENS
    body = visible(item.body)
    for_comments = max(left * COMMENTS_SHARE, left - estimate_tokens(body)) if comments else 0
    comments = cut_tokens(comments, int(for_comments))
    body = cut_tokens(body, left - estimate_tokens(comments))
    return "\n\n".join(part for part in (title, body, comments) if part.strip())
