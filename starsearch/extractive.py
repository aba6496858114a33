"""A summary made of the text's own sentences: no model, no GPU, about a millisecond.

Sentences are ranked by TF-IDF centrality (how much of the whole text's vocabulary they carry), with a bonus for standing early,
and picked greedily with a penalty for repeating what is already picked (maximal marginal relevance, Carbonell & Goldstein 1998).
"""

import math
import re
from collections import Counter
from typing import NamedTuple

from starsearch.imperatives import without_commands
from starsearch.untrusted import visible, without_links

FAMILY = "embedded-extractive-"
MODEL = f"{FAMILY}v1"
MAX_WORDS = 90
MAX_SENTENCES = 4
MAX_CANDIDATES = 80  # a long thread's first sentences hold the matter; keeps the worst case at a few milliseconds
REDUNDANCY = 0.6
DUPLICATE = 0.8  # cosine from which a sentence says nothing new
LEAD_BONUS = 0.5

# Every repetition is bounded: these run over text that strangers wrote, and an unbounded one can take minutes.
_NOISE = re.compile(
    r"<!--.{0,5000}?-->|```.{0,20000}?(?:```|\Z)|!\[[^\]\n]{0,300}\]\([^)\n]{0,1000}\)|</?[a-zA-Z][^>\n]{0,300}>", re.DOTALL
)
_LINK = re.compile(r"\[([^\]\n]{0,300})\]\([^)\n]{0,1000}\)")
_LINE_START = re.compile(r"^\s*(?:#{1,6}\s+|[-*+>]\s+(?:\[[ xX]\]\s*)?|\d+[.)]\s+|\|)")
_SENTENCE_END = re.compile(r"(?<=[.!?。!?])\s+(?=[^\s a-z])")
_TAG_LINE = re.compile(r"^\s*</?[a-z]+(?: [^>]*)?>\s*$", re.MULTILINE)
_WORD = re.compile(r"[^\W_]{2,}")
_STOP = frozenset(
    [
        "about",
        "all",
        "also",
        "am",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "but",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "how",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "just",
        "me",
        "more",
        "most",
        "my",
        "not",
        "of",
        "on",
        "only",
        "or",
        "other",
        "our",
        "out",
        "same",
        "she",
        "should",
        "so",
        "some",
        "such",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "they",
        "this",
        "to",
        "too",
        "very",
        "was",
        "we",
        "were",
        "what",
        "when",
        "which",
        "who",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


NOTHING = "Nothing but instructions to a language model."


class Sentence(NamedTuple):
    position: int
    text: str
    words: Counter[str]


def made(model: str) -> bool:
    """Whether a model of this name makes summaries as this module does."""
    return model.startswith(FAMILY)


def summarize(text: str) -> str:
    """The text's most central sentences in their own order; the first line is its title and is not repeated.

    Passages that speak to a language model, links and invisible characters are left out: what is quoted here is shown to people
    and given to models.
    """
    title, _, body = _TAG_LINE.sub("", without_links(visible(text))).strip().partition("\n")
    title, body = without_commands(title), without_commands(body)
    sentences = _sentences(body)
    if not sentences:
        return _cut(" ".join(_NOISE.sub(" ", body).split()) or title or NOTHING)
    chosen = _choose(sentences, Counter(_words(title)))
    return _cut(" ".join(sentence.text for sentence in sorted(chosen)))


def _sentences(body: str) -> list[Sentence]:
    found: list[Sentence] = []
    for line in _LINK.sub(r"\1", _NOISE.sub("\n", body)).splitlines():
        plain = _LINE_START.sub("", line).strip(" *_|`")
        if line.lstrip().startswith("#") or len(plain) < 12:
            continue
        for part in _SENTENCE_END.split(plain):
            words = Counter(_words(part))
            if len(words) >= 3:
                found.append(Sentence(len(found), part, words))
            if len(found) == MAX_CANDIDATES:
                return found
    return found


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in _STOP]


def _choose(sentences: list[Sentence], title: Counter[str]) -> list[Sentence]:
    rarity = _rarity(sentences)
    vectors = [{word: n * rarity[word] for word, n in sentence.words.items()} for sentence in sentences]
    centroid: Counter[str] = Counter()
    for vector in vectors:
        centroid.update(vector)
    for word in title:
        if word in rarity:
            centroid[word] *= 2
    relevance = [
        _cosine(vector, centroid) * (1 + LEAD_BONUS / (1 + sentence.position)) for sentence, vector in zip(sentences, vectors, strict=True)
    ]
    chosen: list[int] = []
    left = set(range(len(sentences)))
    words = 0
    while left and len(chosen) < MAX_SENTENCES and words < MAX_WORDS:
        repeated = {i: max((_cosine(vectors[i], vectors[j]) for j in chosen), default=0) for i in left}
        best = max(left, key=lambda i: relevance[i] - REDUNDANCY * repeated[i])
        left.remove(best)
        if repeated[best] < DUPLICATE:
            chosen.append(best)
            words += len(sentences[best].text.split())
    return [sentences[i] for i in chosen]


def _rarity(sentences: list[Sentence]) -> dict[str, float]:
    seen = Counter(word for sentence in sentences for word in sentence.words)
    return {word: math.log(1 + len(sentences) / count) for word, count in seen.items()}


def _cosine(a: dict[str, float], b: dict[str, float] | Counter[str]) -> float:
    dot = sum(weight * b[word] for word, weight in a.items() if word in b)
    if not dot:
        return 0.0
    norms = math.sqrt(sum(w * w for w in a.values())) * math.sqrt(sum(w * w for w in b.values()))
    return dot / norms


def _cut(text: str) -> str:
    words = text.split()
    return text if len(words) <= MAX_WORDS else " ".join(words[:MAX_WORDS]) + " …"
