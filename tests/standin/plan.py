"""Executes a query: its selections are compiled once into steps, one list for each concrete type, and every object runs through them.

graphql-core's own executor takes several times the CPU for a sweep; test_standin.py holds the two against each other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from graphql import FieldNode, GraphQLField, GraphQLNamedType, GraphQLObjectType, SelectionSetNode, get_named_type
from graphql.execution.values import VariableValues, get_argument_values

from tests.standin.documents import Query, Refused, schema
from tests.standin.fields import CALLED, PLAIN, Run
from tests.standin.selections import applies, expand


class Step(NamedTuple):
    """One field of an answer. call: the place of its arguments in the run's list, None for a field without; below: of an object."""

    key: str
    get: Callable[..., Any]
    call: int | None
    below: "Shape | None"


class Shape:
    """What is asked of an object, for each type that it may be of."""

    __slots__ = ("_plan", "_sets", "_steps")

    def __init__(self, plan: "Plan", sets: Sequence[tuple[SelectionSetNode, GraphQLNamedType]]) -> None:
        self._plan, self._sets = plan, sets
        self._steps: dict[str, tuple[Step, ...]] = {}

    def steps(self, typename: str) -> tuple[Step, ...]:
        found = self._steps.get(typename)
        if found is None:
            found = self._steps[typename] = self._plan.compile(self._sets, typename)
        return found


class Plan:
    """A query, compiled for one setting of its @include and @skip conditions."""

    def __init__(self, query: Query, switches: Mapping[str, bool]) -> None:
        self.query, self._switches = query, switches
        self._calls: list[tuple[GraphQLField, FieldNode]] = []
        self._root = Shape(self, [(query.operation.selection_set, schema().query_type)])

    def compile(self, sets: Sequence[tuple[SelectionSetNode, GraphQLNamedType]], typename: str) -> tuple[Step, ...]:
        nodes: dict[str, list[FieldNode]] = {}
        for selections, parent in sets:
            for node, condition in expand(self.query, selections, parent, self._switches):
                if applies(condition, typename):
                    nodes.setdefault(node.alias.value if node.alias else node.name.value, []).append(node)
        return tuple(self._step(key, same, typename) for key, same in nodes.items())

    def _step(self, key: str, nodes: Sequence[FieldNode], typename: str) -> Step:
        """Fields of the same key are one field; what they ask below is merged."""
        name = nodes[0].name.value
        if name == "__typename":
            return Step(key, lambda value: value.typename, None, None)
        kind = schema().type_map[typename]
        assert isinstance(kind, GraphQLObjectType)
        definition = kind.fields[name]
        named = get_named_type(definition.type)
        sets = [(node.selection_set, named) for node in nodes if node.selection_set]
        below = Shape(self, sets) if sets else None
        called = CALLED.get(typename, {}).get(name)
        if called:
            self._calls.append((definition, nodes[0]))
            return Step(key, called, len(self._calls) - 1, below)
        if name not in PLAIN.get(typename, {}):
            raise Refused(
                {"type": "STAND_IN", "message": f"The stand-in does not know {typename}.{name}: add it to tests/standin/fields.py"}
            )
        return Step(key, PLAIN[typename][name], None, below)

    def execute(self, run: Run, variables: VariableValues) -> dict[str, Any]:
        """The answer's data; what could not be resolved is null, with its error in run.errors."""
        self._root.steps("Query")
        run.bind(lambda call: get_argument_values(*self._calls[call], variables))
        return _object(run, self._root, run)


def _object(value: Any, shape: Shape, run: Run) -> dict[str, Any]:
    answer = {}
    for key, get, call, below in shape._steps.get(value.typename) or shape.steps(value.typename):
        if call is None:
            found = get(value)
        elif run.dry and key != "rateLimit":
            found = None
        else:
            run.key = key
            found = get(value, run.arguments(call), run)
        if below is not None and found is not None:
            if type(found) is list:
                found = [None if each is None else _object(each, below, run) for each in found]
            else:
                found = _object(found, below, run)
        answer[key] = found
    return answer
