"""From an item to the messages of a chat request, and to the text that is embedded. Pure.

The constant part comes first and whole, so that an engine can reuse its prefix; the item comes last, delimited. Repository,
number and author stay out: a summary must not depend on who asked, and equal texts are summarized once.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from starsearch.models import DueItem, capped_comments

PROMPT_VERSION = "v1"
MAX_SUMMARY_TOKENS = 200  # 100 words of English are about 135 tokens
CHARACTERS_PER_TOKEN = 3.0  # English prose has 4 and more, code and stack traces about 3
DEFAULT_CONTEXT_TOKENS = 8_192  # for engines that do not say
OVERHEAD_TOKENS = 400  # instructions, chat template
HEAD = 0.7  # of what is kept of a long text; its end often holds the resolution
CUT = "\n[…]\n"

EMBEDDED_CHARACTERS = 350
# Measured on the 66 sample questions (docs/decisions/0004): as good as longer texts, and twice as fast.
TEXT_RECIPE = f"title-summary-{EMBEDDED_CHARACTERS}c-1"

_TAG = re.compile(r"</?item", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """What is asked, and the key under which the answer may be reused."""

    system: str
    user: str
    max_tokens: int

    def key(self, model: str) -> bytes:
        parts = (model, PROMPT_VERSION, f"temperature=0 max_tokens={self.max_tokens}", self.user)
        return hashlib.sha256("\0".join(parts).encode()).digest()


def prompt_for(item: DueItem, *, context_tokens: int | None, shrink: int = 0) -> Prompt:
    """The prompt for one item, cut to the engine's context. Each `shrink` halves the text once more.

    A second attempt may answer at twice the length: the first one was probably cut off.
    """
    max_tokens = MAX_SUMMARY_TOKENS * (2 if item.attempts else 1)
    tokens = (context_tokens or DEFAULT_CONTEXT_TOKENS) - max_tokens - OVERHEAD_TOKENS
    characters = int(max(tokens, 100) * CHARACTERS_PER_TOKEN) >> shrink
    text = cut_middle(_item_text(item), characters)
    user = f'<item type="{item.type}" state="{item.state}">\n{text}\n</item>'
    return Prompt(_instructions(PROMPT_VERSION), user, max_tokens)


def embedded_text(title: str, summary: str) -> str:
    """What an item's vector means: its title and summary, cut at a word. See TEXT_RECIPE."""
    text = f"{title}\n{summary}".strip()
    return text if len(text) <= EMBEDDED_CHARACTERS else text[:EMBEDDED_CHARACTERS].rsplit(maxsplit=1)[0]


def cut_middle(text: str, characters: int) -> str:
    """The text's head and tail, at most `characters` long."""
    if len(text) <= characters:
        return text
    kept = max(characters - len(CUT), 2)
    head = int(kept * HEAD)
    return text[:head] + CUT + text[len(text) - (kept - head) :]


def _item_text(item: DueItem) -> str:
    parts = [item.title, item.body]
    parts += [f"Comment: {comment}" for comment in capped_comments(list(item.comments))]
    # a forged delimiter is defused, not removed: the text may be about one
    return _TAG.sub(lambda match: match[0].replace("<", "\u2039"), "\n\n".join(part for part in parts if part.strip()))


@cache
def _instructions(version: str) -> str:
    return (resources.files("starsearch.inference") / "prompts" / f"{version}.txt").read_text("utf-8").strip()
