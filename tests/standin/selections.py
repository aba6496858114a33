"""Walks over a query's selections: which fields are asked of an object of one type, fragments and conditions settled."""

from collections.abc import Iterator, Mapping, Sequence

from graphql import (
    BooleanValueNode,
    DirectiveNode,
    FieldNode,
    FragmentSpreadNode,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLUnionType,
    InlineFragmentNode,
    SelectionSetNode,
    VariableNode,
)

from tests.standin.documents import Query, schema

Switches = Mapping[str, bool]


def is_included(directives: Sequence[DirectiveNode], switches: Switches) -> bool:
    for directive in directives:
        if directive.name.value not in {"include", "skip"}:
            continue
        value = directive.arguments[0].value
        given = switches[value.name.value] if isinstance(value, VariableNode) else isinstance(value, BooleanValueNode) and value.value
        if given is not (directive.name.value == "include"):
            return False
    return True


def expand(
    query: Query, selections: SelectionSetNode, parent: GraphQLNamedType, switches: Switches
) -> Iterator[tuple[FieldNode, GraphQLNamedType]]:
    """Every field that is included, with the type that its fragment names: one pair for each occurrence in the text."""
    for node in selections.selections:
        if not is_included(node.directives or (), switches):
            continue
        if isinstance(node, FieldNode):
            yield node, parent
        elif isinstance(node, InlineFragmentNode):
            narrowed = schema().type_map[node.type_condition.name.value] if node.type_condition else parent
            yield from expand(query, node.selection_set, narrowed, switches)
        elif isinstance(node, FragmentSpreadNode):
            fragment = query.fragments[node.name.value]
            yield from expand(query, fragment.selection_set, schema().type_map[fragment.type_condition.name.value], switches)


def applies(condition: GraphQLNamedType, typename: str) -> bool:
    """Whether what a fragment asks of `condition` is asked of an object of this concrete type."""
    if isinstance(condition, GraphQLInterfaceType | GraphQLUnionType):
        return schema().is_sub_type(condition, schema().type_map[typename])
    return condition.name == typename
