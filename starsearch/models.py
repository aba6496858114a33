"""The nouns: items, what a source yields, and counts.

Text from GitHub is parsed and cleaned here, once, at the edge; everything behind it may rely on valid Unicode without NUL,
UTC timestamps and a known type and state.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from starsearch.errors import Rejected

# The recipe of the content hash is stored beside it: a new recipe must not make every item due.
HASH_RECIPE = "title-body-state-comments-1"
COMMENTS_IN_DIGEST = 5
COMMENT_CHARACTERS = 4_000  # fixed, so that another token budget does not change the hash
FUTURE_TOLERANCE = timedelta(hours=24)
MAX_NUMBER = 2**31 - 1
MAX_REASONS = 3  # of one rejected line; a thread of 80 bad comments has 80
# A row of PostgreSQL's indexes takes 2,704 bytes, and lower() makes some letters half as long again. GitHub's logins have at most 39
# characters, its labels 50, titles 256 and bodies 65,536.
MAX_NAME_BYTES = 1_000  # of an author, a label, a node id
MAX_HOST_BYTES = 255
MAX_URL_BYTES = 2_000
MAX_TITLE_BYTES = 4_000
MAX_BODY_BYTES = 4_000_000
MAX_LABELS = 1_000

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}")

ItemType = Literal["issue", "pull_request"]
State = Literal["open", "closed", "merged"]
ITEM_TYPES: tuple[ItemType, ItemType] = ("issue", "pull_request")
VersionStatus = Literal["active", "shadow", "retired"]  # searched; kept up to date beside it; its digests are dropped
GATE_MARGIN = 0.05  # by how much recall@10 may fall when another version comes to serve; with 66 questions less is chance


def clean(text: str) -> str:
    """Valid text for PostgreSQL and any tokenizer: NUL and lone surrogates become U+FFFD, newlines become \\n."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    return _LONE_SURROGATE.sub("\ufffd", text)


def _text(value: object) -> object:
    return "" if value is None else clean(value) if isinstance(value, str) else value


def _person(value: object) -> object:
    """A login; some sources tell a whole user object instead."""
    if isinstance(value, Mapping):
        value = value.get("login") or value.get("username")
    return _text(value) or None


def within(text: str | None, most: int) -> str | None:
    """Raises ValueError for text of more bytes than that."""
    if text is not None and len(text.encode()) > most:
        raise ValueError(f"longer than {most:,} bytes")
    return text


def _at_most(most: int) -> AfterValidator:
    return AfterValidator(partial(within, most=most))


def in_utc(value: datetime) -> datetime:
    """Raises ValueError for a moment that lies in no year of ours in UTC."""
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a timestamp in UTC is in one of the years 1 to 9999") from error


def _utc(value: datetime) -> datetime:
    value = in_utc(value)
    if value > datetime.now(UTC) + FUTURE_TOLERANCE:
        raise ValueError(f"{value.isoformat()} lies more than 24 hours in the future")
    return value


def is_repository_name(value: str) -> bool:
    return bool(_REPOSITORY.fullmatch(value))


def _repository(value: str) -> str:
    if not is_repository_name(value):
        raise ValueError("a repository is owner/name")
    return value


def _iso_only(value: object) -> object:
    """Timestamps are text: a bare number could be seconds or milliseconds, and guessing would be silent."""
    if isinstance(value, str | datetime | None):
        return value
    raise ValueError("a timestamp is ISO 8601 text")


Text = Annotated[str, BeforeValidator(_text)]
LongText = Annotated[Text, _at_most(MAX_BODY_BYTES)]
Timestamp = Annotated[datetime, BeforeValidator(_iso_only), AfterValidator(_utc)]
Person = Annotated[str | None, BeforeValidator(_person), _at_most(MAX_NAME_BYTES)]
NodeId = Annotated[str | None, BeforeValidator(lambda value: _text(value) or None), _at_most(MAX_NAME_BYTES)]
Label = Annotated[Text, _at_most(MAX_NAME_BYTES)]
RepositoryName = Annotated[str, AfterValidator(_repository)]


class Comment(BaseModel):
    model_config = ConfigDict(frozen=True)

    body: LongText
    author: Person = None
    created_at: Timestamp | None = None


class Item(BaseModel):
    """An issue or a pull request, cleaned. Key: (host, repo without case, number)."""

    model_config = ConfigDict(frozen=True)

    repo: RepositoryName
    number: int = Field(gt=0, le=MAX_NUMBER, strict=True)
    type: ItemType
    title: Annotated[Text, Field(min_length=1), _at_most(MAX_TITLE_BYTES)]
    body: LongText = ""
    state: State = "open"
    url: Annotated[Text, _at_most(MAX_URL_BYTES)] = ""
    author: Person = None
    labels: Annotated[tuple[Label, ...], Field(max_length=MAX_LABELS)] = ()
    comments: tuple[Comment, ...] | None = None  # None: the source does not tell
    comments_count: int | None = Field(default=None, ge=0, le=MAX_NUMBER)
    created_at: Timestamp | None = None
    updated_at: Timestamp | None = None
    closed_at: Timestamp | None = None
    merged_at: Timestamp | None = None
    excerpt: bool = False
    host: Annotated[Text, _at_most(MAX_HOST_BYTES)] = "github.com"
    node_id: NodeId = None
    database_id: int | None = Field(default=None, ge=0, le=2**63 - 1)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("not a JSON object")
        known = {key: value[key] for key in cls.model_fields if value.get(key) is not None}
        if known.get("merged_at"):
            known["state"] = "merged"
        elif "state" not in known:
            known["state"] = "closed" if known.get("closed_at") else "open"
        if not str(known.get("url", "")).startswith(("https://", "http://")):
            path = "pull" if known.get("type") == "pull_request" else "issues"
            known["url"] = f"https://{known.get('host', 'github.com')}/{known.get('repo')}/{path}/{known.get('number')}"
        return known

    @property
    def digest_comments(self) -> tuple[str, ...]:
        return capped_comments([comment.body for comment in self.comments or ()])

    @property
    def content_hash(self) -> bytes:
        """sha256 over all that a digest depends on, and nothing else."""
        digest = hashlib.sha256()
        for part in (self.title, self.body, self.state, *self.digest_comments):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
        return digest.digest()

    @property
    def partition_at(self) -> datetime | None:
        """When the item is filed under, set once: creation, else the earliest time known of it."""
        known = [moment for moment in (self.closed_at, self.merged_at, self.updated_at) if moment]
        return self.created_at or min(known, default=None)


def capped_comments(bodies: list[str]) -> tuple[str, ...]:
    """The newest comments that a digest may see, oldest first, under a fixed number of characters."""
    left, kept = COMMENT_CHARACTERS, []
    for body in reversed(bodies[-COMMENTS_IN_DIGEST:]):
        text = body.strip()[:left]
        if text:
            kept.append(text)
            left -= len(text)
    return tuple(reversed(kept))


def parse_item(value: object) -> Item:
    """One JSON value to an item; raises Rejected with the reasons in words."""
    try:
        return Item.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        more = f" and {len(details) - MAX_REASONS} more" if len(details) > MAX_REASONS else ""
        raise Rejected("; ".join(map(_reason, details[:MAX_REASONS])) + more) from error
    except RecursionError as error:  # telling a url that is a list of lists of lists
        raise Rejected("nested too deep") from error


def _reason(detail: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    message = str(detail["msg"]).removeprefix("Value error, ")
    return clean(f"{where}: {message}" if where else message)[:300]


class Rejection(NamedTuple):
    line: int
    reason: str


@dataclass(frozen=True)
class Checkpoint:
    """How far a crawl has got in one repository, both kinds: everything updated before `high_water` is stored."""

    repo: str
    high_water: datetime | None
    host: str = "github.com"


@dataclass(frozen=True)
class RepositoryFacts:
    """What GitHub says of a repository, None where it was not asked. `node_id` is its identity; the name is an attribute."""

    node_id: str
    full_name: str
    database_id: int | None = None
    archived: bool | None = None
    stars: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """A repository to sweep. `starts`: everything updated before is stored, by kind. `lease`: its token, where it is of the list."""

    id: int
    node_id: str
    full_name: str
    starts: Mapping[ItemType, datetime]
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class SeenItem:
    """An item that a source told to exist, by node id, before its text is fetched."""

    node_id: str
    number: int
    type: ItemType
    updated_at: datetime
    created_at: datetime | None = None


@dataclass(frozen=True)
class Chunk:
    """What a source yields: items, what it had to reject, and how far it got once these are stored.

    `of_github`: GitHub itself tells it; so a node id that turns up elsewhere was transferred, and is no slip in a file.
    """

    items: tuple[Item, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    checkpoint: Checkpoint | None = None
    name: str = ""
    bytes_read: int = 0
    of_github: bool = False


@dataclass
class Counts:
    """What a run did. items = inserted + updated + unchanged; rejected lines are counted apart.

    `llm_requests` are HTTP requests to the chat engine, failures and retries included; tokens are those of both engines.
    `cost_usd` is None where a model was used whose price is unknown.
    """

    items: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: int = 0
    summarized: int = 0
    embedded: int = 0
    dead_letters: int = 0
    llm_requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    seconds: float = 0.0

    def add(self, other: "Counts") -> None:
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            setattr(self, each.name, None if mine is None or theirs is None else mine + theirs)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": round(self.seconds, 3)}


@dataclass
class Spending:
    """HTTP requests to an engine, what their answers say they cost, and the time they took, waiting between retries included.

    `unanswered` requests may have cost something too: their answer never came.
    """

    requests: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Usage:
    """What the calls for one purpose to one model came to. `items` had it done with success; `hours` are those of the model's use."""

    purpose: Literal["summary", "embedding", "answer"]
    model: str
    calls: int
    failed: int
    items: int
    requests: int
    unanswered: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    hours: float


@dataclass(frozen=True)
class IndexVersion:
    """One way to make digests: everything that decides what a vector means, and where its engines are. See contract: index version.

    The addresses are no part of its identity: an engine may move. `id` is 0 for one that is not in the database (yet).
    """

    embedding_model: str
    embedding_revision: str
    dimensions: int
    text_recipe: str
    summary_model: str
    prompt_version: str
    embedding_base_url: str | None = None  # None: the embedded engine
    summary_base_url: str | None = None
    sends_dimensions: bool = False  # whether the engine is told how long its vectors are to be
    id: int = 0
    status: VersionStatus = "active"

    @property
    def fingerprint(self) -> str:
        parts = (
            self.embedding_model,
            self.embedding_revision,
            str(self.dimensions),
            self.text_recipe,
            self.summary_model,
            self.prompt_version,
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def short(self) -> str:
        return self.fingerprint[:12]

    @property
    def name(self) -> str:
        return f"{self.short} ({self.summary_model} {self.prompt_version}, {self.embedding_model} {self.dimensions}d)"


@dataclass(frozen=True)
class DueItem:
    """What a digest needs of one leased item. Repository, number and author stay out of the prompt on purpose."""

    id: int
    type: ItemType
    state: State
    title: str
    body: str
    comments: tuple[str, ...]
    content_hash: bytes
    partition_at: datetime
    attempts: int = 0
    repository: str = ""  # these two for logs alone
    number: int = 0


@dataclass(frozen=True)
class Summary:
    """A summary and what it cost. `key` identifies model, prompt version, parameters and the truncated text.

    `gate_reason`: why the model's answers were not stored and the item's own sentences stand in their place.
    """

    key: bytes
    text: str
    source: Literal["model", "extractive"]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    gate_reason: str | None = None
    gate_detail: str | None = None


@dataclass(frozen=True)
class Filters:
    """What a search is narrowed to: any of the repositories, all of the labels. `since` (from) and `until` (before) are by creation."""

    repos: tuple[str, ...] = ()
    type: ItemType | None = None
    state: State | None = None
    author: str | None = None
    labels: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Hit:
    id: int  # the database's own, not shown
    url: str
    repo: str
    number: int
    type: ItemType
    state: State
    author: str | None
    labels: list[str]
    title: str
    summary: str
    summary_source: str
    score: float
    scores: dict[str, float | None] = field(default_factory=dict)
    created_at: datetime | None = None
    updated_at: datetime | None = None
    closed_at: datetime | None = None


@dataclass(frozen=True)
class Place:
    """Where a ranked item stands, without its texts. vector, text: None in a mode without one."""

    item_id: int
    score: float
    vector: float | None
    text: float | None


@dataclass(frozen=True)
class Word:
    """A word of a question: how many items hold it, what that makes it worth, and whether it picks candidates."""

    text: str
    items: int
    rarity: float
    picks: bool


@dataclass(frozen=True)
class Explanation:
    """How a search went about it. path: of the vector leg; matching: how many items pass the filters, as the planner estimates."""

    path: str | None = None
    matching: int | None = None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Found:
    """rest: the places after the hits, where they were asked for."""

    hits: list[Hit]
    explanation: Explanation = field(default_factory=Explanation)
    rest: list[Place] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """Part of an answer, checked before anybody sees it. Each citation [n] in it is citations[n]."""

    text: str
    citations: dict[int, Hit]


@dataclass(frozen=True)
class Answer:
    """text: None where nothing close was found. Each citation [n] in it is citations[n]; kind tells a model's words from quotes."""

    question: str
    text: str | None
    kind: str  # model, quotes, or nothing close
    citations: dict[int, Hit]
    hits: list[Hit]
    index_version: str
