"""GraphQL queries, read and validated once each against GitHub's own public schema, and their variables.

The schema is schema.graphql of npm's @octokit/graphql-schema 15.26.1 (MIT, licence beside it). It lags the live one a little: what is
valid here is valid there.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    VariableNode,
    Visitor,
    build_ast_schema,
    parse,
    validate,
    visit,
)
from graphql.execution.values import VariableValues, get_variable_values

_SCHEMA = Path(__file__).parent / "schema.graphql.gz"


class Refused(Exception):
    """The query gets these errors and no data."""

    def __init__(self, *errors: dict[str, Any]) -> None:
        super().__init__(errors[0]["message"])
        self.errors = list(errors)


@dataclass(frozen=True, eq=False)
class Query:
    """One operation of a valid document. switches: the variables that @include and @skip depend on."""

    document: DocumentNode
    operation: OperationDefinitionNode
    fragments: Mapping[str, FragmentDefinitionNode]
    switches: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.operation.name.value if self.operation.name else "anonymous"

    def variables(self, given: Mapping[str, Any]) -> VariableValues:
        """Coerced, with defaults. Raises Refused for what does not fit the declarations."""
        values = get_variable_values(schema(), self.operation.variable_definitions or (), dict(given))
        if isinstance(values, list):
            raise Refused(*(_as_error(error) for error in values))
        return values

    def switched(self, variables: VariableValues) -> tuple[bool, ...]:
        return tuple(bool(variables.coerced.get(name)) for name in self.switches)


@lru_cache(1)
def schema() -> GraphQLSchema:
    document = parse(gzip.decompress(_SCHEMA.read_bytes()).decode("utf-8"), no_location=True)
    return build_ast_schema(document, assume_valid=True)


@lru_cache(512)
def read_query(text: str, operation_name: str | None = None) -> Query:
    """Raises Refused for what GitHub would refuse."""
    try:
        document = parse(text)
    except GraphQLSyntaxError as error:
        raise Refused(_as_error(error)) from error
    errors = validate(schema(), document)
    if errors:
        raise Refused(*(_as_error(error) for error in errors))
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    chosen = [node for node in operations if operation_name is None or (node.name and node.name.value == operation_name)]
    if len(chosen) != 1:
        raise Refused({"message": "An operation name is required" if chosen else f'No operation named "{operation_name}"'})
    if chosen[0].operation.value != "query":
        raise Refused({"message": "The stand-in answers queries only", "type": "FORBIDDEN"})
    fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
    return Query(document, chosen[0], fragments, _switches(document))


def _switches(document: DocumentNode) -> tuple[str, ...]:
    found: set[str] = set()

    class Directives(Visitor):
        def enter_directive(self, node: Any, *_: Any) -> None:
            values = (argument.value for argument in node.arguments or () if node.name.value in {"include", "skip"})
            found.update(value.name.value for value in values if isinstance(value, VariableNode))

    visit(document, Directives())
    return tuple(sorted(found))


def _as_error(error: GraphQLError) -> dict[str, Any]:
    locations = [{"line": location.line, "column": location.column} for location in error.locations or ()]
    return {"message": error.message, "locations": locations}
