"""From the ledger's totals to dollars, and what another engine would have cost. Pure, but for reading the price file.

prices.toml holds every price with its source and date. What has no price has no cost: None, never a guess.
"""

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from starsearch.errors import PreconditionMissing
from starsearch.models import Usage

MILLION = 1_000_000
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")

Dollars = Annotated[float, Field(ge=0)]


class _Sourced(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    date: Annotated[str, BeforeValidator(str)]  # TOML has dates of its own


class ModelPrice(_Sourced):
    """Dollars per million tokens, or the hours of `engines` engines of that name. Without `cached`: cached tokens at the full price."""

    prompt: Dollars | None = None
    cached: Dollars | None = None
    completion: Dollars | None = None
    engine: str | None = None
    engines: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _one_way(self) -> "ModelPrice":
        if (self.engine is None) == (self.prompt is None or self.completion is None):
            raise ValueError("give prompt and completion (dollars per million tokens), or engine")
        return self


class EnginePrice(_Sourced):
    """A rented engine. `tokens_per_second` (prompt and completion) is somebody's measurement: `speed_source` says whose."""

    usd_per_hour: Dollars
    tokens_per_second: float | None = Field(None, gt=0)
    speed_source: str = ""


class Prices(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[str, ModelPrice] = {}
    engines: dict[str, EnginePrice] = {}

    @model_validator(mode="after")
    def _engines_exist(self) -> "Prices":
        for name, price in self.models.items():
            if price.engine is not None and price.engine not in self.engines:
                raise ValueError(f"{name}: there is no engine {price.engine!r}")
        return self

    def of(self, model: str) -> ModelPrice | None:
        return self.models.get(model) or self.models.get(_DATED.sub("", model))


def read_prices(path: Path | None = None) -> Prices:
    """The built-in table, with the entries of `path` over it. Raises PreconditionMissing for a file that is no price table."""
    table = tomllib.loads((resources.files("starsearch") / "prices.toml").read_text("utf-8"))
    try:
        own = tomllib.loads(path.read_text("utf-8")) if path else {}
        return Prices.model_validate({**own, **{kind: {**table[kind], **own.get(kind, {})} for kind in ("models", "engines")}})
    except (OSError, ValueError, TypeError, RecursionError) as error:
        details = error.errors(include_url=False) if isinstance(error, ValidationError) else []
        reasons = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in details) or str(error)
        raise PreconditionMissing(f"STARSEARCH_PRICES: {path} is no price table ({reasons}): see starsearch/prices.toml") from error


def cost(usage: Usage, prices: Prices) -> float | None:
    """Dollars; None where the model has no price."""
    price = prices.of(usage.model)
    if price is None:
        return None if usage.requests else 0.0
    if price.engine is not None:
        return usage.hours * price.engines * prices.engines[price.engine].usd_per_hour
    return _token_cost(price, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)


def _token_cost(price: ModelPrice, prompt: float, cached: float, completion: float) -> float:
    full, out = price.prompt or 0.0, price.completion or 0.0
    return ((prompt - cached) * full + cached * (full if price.cached is None else price.cached) + completion * out) / MILLION


def total_cost(usages: Sequence[Usage], prices: Prices) -> float | None:
    """Dollars of all; None where one of them has no price."""
    costs = [cost(usage, prices) for usage in usages]
    known = [each for each in costs if each is not None]
    return round(sum(known), 6) if len(known) == len(costs) else None


def digested(usages: Sequence[Usage]) -> int:
    """How many items these calls digested: each ends with its embedding."""
    return sum(usage.items for usage in usages if usage.purpose == "embedding")


def bill(usages: Sequence[Usage], prices: Prices) -> dict[str, Any]:
    """The totals in the words of `status`: failures included, and `unpriced` naming the models that keep a cost from being known."""
    dollars, items = total_cost(usages, prices), digested(usages)
    return {
        "prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "cached_tokens": sum(usage.cached_tokens for usage in usages),
        "completion_tokens": sum(usage.completion_tokens for usage in usages),
        "cost_usd": dollars,
        "usd_per_million_items": round(dollars / items * MILLION, 2) if dollars is not None and items else None,
        "llm_requests": sum(usage.requests for usage in usages if usage.purpose != "embedding"),
        "unanswered_requests": sum(usage.unanswered for usage in usages),
        "unpriced": sorted({usage.model for usage in usages if cost(usage, prices) is None}),
    }


@dataclass(frozen=True)
class Estimate:
    """What digesting some items would take, going by the ledger; None where it does not tell."""

    tokens: int | None
    digest_hours: float | None
    engine_hours: float | None
    cost_usd: float | None
    usd_per_million_items: float | None


NOTHING_KNOWN = Estimate(None, None, None, None, None)


def estimate(items: int, usages: Sequence[Usage], models: Sequence[str], prices: Prices, *, summaries: int | None = None) -> Estimate:
    """Price `items` before they are digested by `models` (of summaries, of embeddings): like those so far, failures included.

    Every text is taken to be new, so where many repeat it is an upper bound. `summaries`: only so many of them need one.
    """
    amounts = (items if summaries is None else summaries, items)
    parts = [_as_if(usages, purpose, model) for purpose, model in zip(("summary", "embedding"), models, strict=False)]
    known = [part for part in parts if part is not None]
    if len(known) != 2:
        return NOTHING_KNOWN
    shares = [amount / part.items for amount, part in zip(amounts, known, strict=True)]
    costs = [cost(part, prices) if share else 0.0 for share, part in zip(shares, known, strict=True)]
    dollars = None if None in costs else sum(c * share for c, share in zip(costs, shares, strict=True) if c is not None)
    # a run takes as long as its summaries; where there are none, as its embeddings one after the other
    hours = known[0].hours * shares[0] + known[1].seconds / 3600 * (items - amounts[0]) / known[1].items
    price = prices.of(known[0].model)
    return Estimate(
        tokens=round(sum((part.prompt_tokens + part.completion_tokens) * share for share, part in zip(shares, known, strict=True))),
        digest_hours=round(hours, 4),
        engine_hours=round(hours * (price.engines if price else 1), 4),
        cost_usd=None if dollars is None else round(dollars, 6),
        usd_per_million_items=None if dollars is None or not items else round(dollars / items * MILLION, 2),
    )


def _as_if(usages: Sequence[Usage], purpose: str, model: str) -> Usage | None:
    """All calls for one purpose as if `model` had answered them: its own where it has any; None where nothing was done."""
    chosen = [u for u in usages if u.purpose == purpose and u.items]
    chosen = [u for u in chosen if u.model == model] or chosen
    if not chosen:
        return None
    added = {
        each.name: sum(getattr(usage, each.name) for usage in chosen) for each in fields(Usage) if each.name not in {"purpose", "model"}
    }
    return replace(chosen[0], model=model, **added)


@dataclass(frozen=True)
class Comparison:
    """What a million summaries like the ledger's would cost elsewhere, at a number of items a day."""

    prompt_tokens_per_item: float
    completion_tokens_per_item: float
    items_per_day: int
    apis: list[dict[str, Any]]
    engines: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(usages: Sequence[Usage], prices: Prices, *, items_per_day: int) -> Comparison | None:
    """APIs by the token against rented engines by the hour, for the summaries alone; None before anything was summarized.

    An engine's speed is a public figure for another model and text length, scaled by tokens. Break-even is with the cheapest API: the
    items a day from which an engine that is always on costs less; None where even a busy one costs more.
    """
    summaries = _as_if(usages, "summary", "")
    if summaries is None:
        return None
    prompt, cached, completion = (getattr(summaries, f"{kind}_tokens") / summaries.items for kind in ("prompt", "cached", "completion"))
    apis: list[dict[str, Any]] = [
        {"model": name, "usd_per_million_items": round(_token_cost(price, prompt, cached, completion) * MILLION, 2), "date": price.date}
        for name, price in prices.models.items()
        if price.completion
    ]
    apis.sort(key=lambda api: api["usd_per_million_items"])
    cheapest = apis[0]["usd_per_million_items"] / MILLION if apis else None
    engines = [
        {"engine": name} | _engine_by_the_day(price, (prompt + completion) / price.tokens_per_second, items_per_day, cheapest)
        for name, price in prices.engines.items()
        if price.tokens_per_second
    ]
    return Comparison(round(prompt, 1), round(completion, 1), items_per_day, apis, engines)


def _engine_by_the_day(price: EnginePrice, seconds_per_item: float, items_per_day: int, cheapest: float | None) -> dict[str, Any]:
    day = 24 * price.usd_per_hour
    capacity = 86_400 / seconds_per_item
    needed = math.ceil(items_per_day / capacity)
    break_even = None if not cheapest or day / cheapest > capacity else math.ceil(day / cheapest)
    return {
        "usd_per_hour": price.usd_per_hour,
        "busy_share": round(items_per_day / capacity / needed, 4),
        "engines": needed,
        "usd_per_million_items_busy": round(price.usd_per_hour / 3600 * seconds_per_item * MILLION, 2),
        "usd_per_million_items_always_on": round(day * needed / items_per_day * MILLION, 2),
        "break_even_items_per_day": break_even,
        "date": price.date,
    }
