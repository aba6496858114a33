"""Every error this project raises, and who deals with it.

StarsearchError                exit 1
├── PreconditionMissing        exit 3: something outside is missing; the message says what to do. Nobody retries.
│   ├── DatabaseUnavailable    this one, EngineUnavailable and SourceUnavailable: flows try once more (tasks/retries.py)
│   ├── DatabaseUnsuitable     too old, edited migration, unknown data folder
│   ├── EngineUnavailable      no answer at all: the run stops, leases are handed back, no attempt is counted
│   │   └── ModelNotServed     it answers, but not for this model
│   ├── ContextTooSmall        the model's context holds no item worth summarizing
│   ├── SourceUnavailable      GitHub, or what stands in for it, does not answer
│   ├── Braked                 nothing new may begin now (brakes.py): what is due stays due
│   │   ├── Paused             somebody stopped all work: `starsearch resume`
│   │   ├── BudgetSpent        the day's, or the run's, tokens, dollars or requests are used up
│   │   └── Backlog            more is due than engines get done: nothing more is fetched, marks stay where they are
│   └── VersionMismatch        settings and the database's index version disagree (model, dimensions, prompt)
├── DigestFailed               one item's digest: recorded, tried again, then a dead letter
├── EngineFailing              whole batches in a row failed: the run stops; what is due stays due
├── ShardsFailed               shards failed again and again, or took too long: what is due stays due, the next run goes on
├── LeaseLost                  another worker holds the batch now: drop the result, claim again
├── TooMuch                    a backfill or reprocess beyond its limits, or too long to begin unconfirmed: nothing was done
├── QueryUnusable              exit 2: an empty question, a limit out of range
├── NotStored                  a repository or an item that is asked for is not in the database
├── Rejected                   one line or object of a source: counted with its reason, the rest goes on
├── GateRefused                a new index version is incomplete or finds less: the old one goes on serving
├── QueryTooHeavy              GitHub gave up on a batch (502, 504, resource limits): asked again in halves
├── AnswerUnusable             dropped, 5xx, not JSON: three tries, then its repositories join the next crawl
├── QueryRefused               GitHub understood the query and will not answer it. Nobody retries.
└── RateLimited                GitHub says wait: the crawl stops cleanly and says until when
"""

from datetime import datetime


class StarsearchError(Exception):
    """Something failed; the message is for a person."""

    exit_code = 1


class PreconditionMissing(StarsearchError):
    """Something that must be there before work can start is missing."""

    exit_code = 3


class DatabaseUnavailable(PreconditionMissing):
    """No PostgreSQL answers where one should."""


class DatabaseUnsuitable(PreconditionMissing):
    """PostgreSQL answers, but is not one this project may write to."""


class EngineUnavailable(PreconditionMissing):
    """The inference engine does not answer. `reached`: it got the request and then broke off, so the item may be why."""

    def __init__(self, message: str, *, reached: bool = False) -> None:
        super().__init__(message)
        self.reached = reached


class ModelNotServed(EngineUnavailable):
    """The inference engine answers, but does not serve the configured model."""


class ContextTooSmall(PreconditionMissing):
    """The inference engine was started with too short a context."""


class SourceUnavailable(PreconditionMissing):
    """The place that items come from does not answer."""


class Braked(PreconditionMissing):
    """Nothing new may begin now."""


class Paused(Braked):
    """Nothing new is begun until somebody says so."""


class BudgetSpent(Braked):
    """Nothing new is begun until the next day, the next run, or a larger budget."""


class Backlog(Braked):
    """Nothing more is fetched until engines have done some of what is due."""


class VersionMismatch(PreconditionMissing):
    """The settings describe another index version than the one the database holds."""


class DigestFailed(StarsearchError):
    """One item could not be digested; `reason` is a short, countable name and `detail` what the engine said.

    permanent: another attempt would fail alike. engine: the fault may be the engine's, not the item's. attempt: it counts as one.
    """

    def __init__(self, reason: str, detail: str = "", *, permanent: bool = False, engine: bool = False, attempt: bool = True) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.permanent = permanent
        self.engine = engine
        self.attempt = attempt


class EngineFailing(StarsearchError):
    """Several whole batches failed in a row: the engine is at fault, not the items."""


class OutOfTime(StarsearchError):
    """It took longer than it may. What it wrote down stays; the next run goes on from there."""


class ShardsFailed(StarsearchError):
    """A parent's shards did not finish what is due; the message says how much is left, and what they said."""


class LeaseLost(StarsearchError):
    """The lease ran out and another worker took the batch; nothing was written."""


class GateRefused(StarsearchError):
    """An index version may not serve search; the message names every reason."""


class TooMuch(StarsearchError):
    """What was asked for would come to more than whoever asked allowed; the message says by how much, and how to allow it."""


class QueryUnusable(StarsearchError):
    """A search that cannot be made; the message says what would do."""

    exit_code = 2


class NotStored(StarsearchError):
    """What is asked for is not in this database."""


class Rejected(StarsearchError):
    """A line or object that cannot become an item."""


class QueryTooHeavy(StarsearchError):
    """GitHub ran out of time or resources over one query; a smaller one may do."""


class AnswerUnusable(StarsearchError):
    """What came back is no answer to the query: a broken connection, a server error, a proxy's page."""


class QueryRefused(StarsearchError):
    """GitHub answered with errors and without data."""


class RateLimited(StarsearchError):
    """GitHub's quota is used up until `resets_at` (UTC; None where GitHub did not say)."""

    def __init__(self, message: str, resets_at: datetime | None = None) -> None:
        super().__init__(message)
        self.resets_at = resets_at
