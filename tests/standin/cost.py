"""What a query costs, by GitHub's documented formula, and the limits that GitHub checks before it executes anything.

Points are the requests that would fill each connection once, by a hundred, at least one: the size of a page is free, how often a
connection is opened is not. Whether nodes(ids:) multiplies is not documented; here it does, which is the higher price.
https://docs.github.com/graphql/overview/rate-limits-and-query-limits-for-the-graphql-api
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from graphql import FieldNode, GraphQLField, GraphQLNamedType, GraphQLObjectType, SelectionSetNode, get_named_type
from graphql.execution.values import VariableValues, get_argument_values

from tests.standin.documents import Query, Refused, schema
from tests.standin.selections import expand

NODE_LIMIT = 500_000
PAGE_LIMIT = 100
IDS_LIMIT = 100
PAGED = {"nodes", "edges", "pageInfo"}


class Cost(NamedTuple):
    points: int
    requests: int
    nodes: int


@dataclass(frozen=True)
class Opening:
    """A place of the query where a list is opened: a connection, or nodes(ids:)."""

    definition: GraphQLField
    node: FieldNode
    needs_size: bool
    inner: tuple["Opening", ...]

    @property
    def name(self) -> str:
        return self.node.name.value


def openings(query: Query, switches: Mapping[str, bool]) -> tuple[Opening, ...]:
    return _openings(query, [query.operation.selection_set], schema().query_type, switches)


def _openings(
    query: Query, selection_sets: Sequence[SelectionSetNode], parent: GraphQLNamedType, switches: Mapping[str, bool]
) -> tuple[Opening, ...]:
    found: list[Opening] = []
    for selections in selection_sets:
        for node, condition in expand(query, selections, parent, switches):
            if node.selection_set is None or node.name.value.startswith("__"):
                continue
            definition = condition.fields[node.name.value]
            kind = get_named_type(definition.type)
            inner = _openings(query, [node.selection_set], kind, switches)
            paged = _is_connection(kind) and any(
                below.name.value in PAGED for below, _ in expand(query, node.selection_set, kind, switches)
            )
            if paged or (node.name.value in {"search", "nodes"} and definition.args):
                found.append(Opening(definition, node, paged, inner))
            else:
                found += inner
    return tuple(found)


def _is_connection(kind: GraphQLNamedType) -> bool:
    return isinstance(kind, GraphQLObjectType) and kind.name.endswith("Connection") and "pageInfo" in kind.fields


def price(opened: Sequence[Opening], variables: VariableValues) -> Cost:
    """Raises Refused for a missing or wrong page size, too many ids, or too many nodes."""
    requests, nodes = _price(opened, variables, 1)
    if nodes > NODE_LIMIT:
        message = f"This query requests up to {nodes:,} possible nodes which exceeds the maximum limit of {NODE_LIMIT:,}."
        raise Refused({"type": "MAX_NODE_LIMIT_EXCEEDED", "message": message})
    return Cost(max(1, (requests + 50) // 100), requests, nodes)


def _price(opened: Sequence[Opening], variables: VariableValues, times: int) -> tuple[int, int]:
    requests = nodes = 0
    for opening in opened:
        given = get_argument_values(opening.definition, opening.node, variables)
        size = _ids(given["ids"]) if "ids" in given else _size(opening, given)
        requests += times
        nodes += times * size
        inner = _price(opening.inner, variables, times * size)
        requests, nodes = requests + inner[0], nodes + inner[1]
    return requests, nodes


def _ids(ids: Sequence[str]) -> int:
    if len(ids) > IDS_LIMIT:
        message = f"You may not provide more than {IDS_LIMIT} node ids; you provided {len(ids)}."
        raise Refused({"type": "ARGUMENT_LIMIT", "path": ["nodes"], "message": message})
    return len(ids)


def _size(opening: Opening, given: Mapping[str, Any]) -> int:
    name = opening.name
    which = "first" if given.get("first") is not None else "last"
    size = given.get(which)
    if size is None:
        if not opening.needs_size:
            return 0
        message = f"You must provide a `first` or `last` value to properly paginate the `{name}` connection."
        raise Refused({"type": "MISSING_PAGINATION_BOUNDARIES", "path": [name], "message": message})
    if size > PAGE_LIMIT:
        message = f"Requesting {size} records on the `{name}` connection exceeds the `{which}` limit of {PAGE_LIMIT} records."
        raise Refused({"type": "EXCESSIVE_PAGINATION", "path": [name], "message": message})
    if size < 1:
        message = f"`{which}` on the `{name}` connection cannot be less than 1."
        raise Refused({"type": "INVALID_PAGINATION", "path": [name], "message": message})
    return size
