"""What GitHub does on a bad day, on demand: rules that say which requests fail, how, and how often.

    github.faults.add("502", operation="Sweep", times=3, after=10, min_ids=25)
    github.faults.add("forbidden", ids={item.node_id}, times=None)      # None: for ever

| kind            | on the wire                                                                             |
|-----------------|-----------------------------------------------------------------------------------------|
| 502, 504        | that status; the query's points and one more are charged                                |
| 500             | that status                                                                             |
| html            | 200 with a web page, as a captive portal sends                                          |
| drop, timeout   | the connection is closed without an answer, at once or after `seconds`                  |
| slow            | answered after `seconds`; other rules still apply                                       |
| secondary_403, secondary_200, 429 | a secondary limit, with retry-after: `seconds` (without it if None)   |
| exhausted       | the credential's window is used up, now and until the virtual clock resets it           |
| resource_limits | 200; the second half of the nodes, or `ids`, is null with RESOURCE_LIMITS_EXCEEDED      |
| holes           | 200; in lists (of issues, labels, comments), the items of `items`, or all of those longer than `longest`, are null with RESOURCE_LIMITS_EXCEEDED, or without any error where `silent` |
| forbidden, not_found, wrong_null | the same with FORBIDDEN, with NOT_FOUND, without any error             |
| insufficient_scopes, forbidden_403 | no data: the token may not                                           |
| incomplete      | a search returns less than it found (REST: incomplete_results)                          |
| 401             | Bad credentials                                                                         |
"""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.standin.replies import HTML, SECONDARY, Reply, as_json, message

CHARGED = {"502", "504"}
SPOILING = {
    "holes": ("RESOURCE_LIMITS_EXCEEDED", "Resource limits for this query exceeded."),
    "resource_limits": ("RESOURCE_LIMITS_EXCEEDED", "Resource limits for this query exceeded."),
    "forbidden": ("FORBIDDEN", "Resource protected by organization SAML enforcement. You must grant your OAuth token access."),
    "not_found": ("NOT_FOUND", "Could not resolve to a node with the global id of '{}'"),
    "wrong_null": (None, ""),
}
BATCHED = ("resource_limits", "forbidden", "not_found", "wrong_null")
ANSWERED = {"500", "502", "504", "html", "secondary_403", "secondary_200", "429", "insufficient_scopes", "forbidden_403", "401"}
KINDS = {*SPOILING, *ANSWERED, "drop", "timeout", "slow", "exhausted", "incomplete"}


@dataclass
class Rule:
    """after: matching requests that pass first; times None: for ever; seconds None: the kind's own default."""

    kind: str
    operation: str | None = None
    times: int | None = 1
    after: int = 0
    min_ids: int = 0
    credential: str | None = None
    seconds: float | None = 1.0
    ids: frozenset[str] = frozenset()
    items: frozenset[str] = frozenset()
    longest: int = 0
    silent: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no such fault: {self.kind}; there are {', '.join(sorted(KINDS))}")
        self.ids = frozenset(self.ids)
        self.items = frozenset(self.items)

    def matches(self, operation: str, ids: Collection[str], credential: str) -> bool:
        return (
            self.times != 0
            and self.operation in {None, operation}
            and len(ids) >= self.min_ids
            and self.credential in {None, credential}
            and (not self.ids or not self.ids.isdisjoint(ids))
        )


class Faults:
    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.met: Counter[str] = Counter()

    def add(self, kind: str, operation: str | None = None, **options: Any) -> Rule:
        rule = Rule(kind, operation, **options)
        self.rules.append(rule)
        return rule

    def clear(self) -> None:
        self.rules.clear()

    def fault_hour(self, *, seed: int = 0, requests: int = 600) -> None:
        """A bad hour, spread over so many requests: see github.md 1.4. Waits are a second, so that a test ends."""
        rng = random.Random(seed)
        hour = {
            "502": 12,
            "resource_limits": 5,
            "504": 3,
            "secondary_403": 1,
            "secondary_200": 1,
            "drop": 2,
            "500": 2,
            "401": 1,
            "slow": 20,
        }
        for kind, times in hour.items():
            for _ in range(times):
                self.add(kind, after=rng.randrange(requests), min_ids=2 if kind in BATCHED else 0, seconds=0.2 if kind == "slow" else 1)

    def take(self, operation: str, ids: Collection[str], credential: str) -> list[Rule]:
        """The rules that this request meets: any number of slow ones, then at most one other."""
        met: list[Rule] = []
        other: Rule | None = None
        for rule in self.rules:
            if not rule.matches(operation, ids, credential):
                continue
            if rule.after:
                rule.after -= 1
            elif rule.kind == "slow":
                met.append(rule)
            elif other is None:
                other = rule
        met += [other] if other else []
        for rule in met:
            rule.times = None if rule.times is None else rule.times - 1
            self.met[rule.kind] += 1
        self.rules = [rule for rule in self.rules if rule.times != 0]
        return met


def answer_to(rule: Rule) -> Reply:
    """What a fault of the ANSWERED kinds sends."""
    wait = {} if rule.seconds is None else {"retry-after": f"{rule.seconds:.0f}"}
    if rule.kind in {"502", "504"}:
        status = int(rule.kind)
        text = "We couldn't respond to your request in time. Sorry about that. Please try resubmitting your request."
        return message(status, text)
    if rule.kind in {"secondary_403", "429"}:
        return message(429 if rule.kind == "429" else 403, SECONDARY, wait)
    answers = {
        "500": lambda: message(500, "Server Error"),
        "html": lambda: Reply(200, HTML, {"content-type": "text/html; charset=utf-8"}),
        "secondary_200": lambda: as_json(200, {"errors": [{"message": SECONDARY}], "message": SECONDARY}, wait),
        "insufficient_scopes": lambda: as_json(
            200, {"errors": [_error("INSUFFICIENT_SCOPES", "Your token has not been granted the scopes.")]}
        ),
        "forbidden_403": lambda: message(403, "Resource not accessible by personal access token"),
        "401": lambda: message(401, "Bad credentials"),
    }
    return answers[rule.kind]()


def spoil(rule: Rule, answer: dict[str, Any], ids: Iterable[str]) -> None:
    """Make nulls of nodes, in place: of the rule's ids, else of the second half; of whatever was asked where there are no ids."""
    data = answer["data"]
    if rule.kind == "holes":
        for path, items in _lists(data, []):
            for position, item in enumerate(items):
                if item and (item.get("id") in rule.items if rule.items else len(items) > rule.longest):
                    items[position] = None
                    if not rule.silent:
                        _tell(rule, answer, [*path, position], "")
        return
    ids = list(ids)
    if "nodes" not in data:
        for key in [key for key in data if key != "rateLimit"]:
            data[key] = None
            _tell(rule, answer, [key], key)
        return
    for position, node_id in enumerate(ids):
        if node_id in rule.ids if rule.ids else position >= len(ids) // 2:
            data["nodes"][position] = None
            answer["errors"] = [error for error in answer.get("errors", ()) if error.get("path") != ["nodes", position]]
            _tell(rule, answer, ["nodes", position], node_id)
    if not answer.get("errors", True):
        del answer["errors"]


def _lists(value: Any, path: list[str | int]) -> Iterator[tuple[list[str | int], list[Any]]]:
    """The nodes of every list below, and where they are."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, each in below:
        if step in {"issues", "pullRequests", "labels", "comments"} and "nodes" in (each or ()):
            yield [*path, step, "nodes"], each["nodes"]
        else:
            yield from _lists(each, [*path, step])


def _tell(rule: Rule, answer: dict[str, Any], path: list[str | int], what: str) -> None:
    kind, text = SPOILING[rule.kind]
    if kind:
        answer.setdefault("errors", []).append(_error(kind, text.format(what)) | {"path": path})


def _error(kind: str, text: str) -> Mapping[str, Any]:
    return {"type": kind, "message": text}
