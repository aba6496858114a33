"""GitHub's nodes as this project's nouns: what a sweep tells of a repository, and what a fetch tells of an item."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starsearch.errors import Rejected
from starsearch.github.client import Node
from starsearch.github.values import MAX_ID, whole, word
from starsearch.models import Comment, Item, ItemType, RepositoryFacts, SeenItem, in_utc, parse_item

CONNECTIONS: dict[ItemType, str] = {"issue": "issues", "pull_request": "pullRequests"}


@dataclass(frozen=True)
class Page:
    """Items of one kind, newest update first; `after` is the cursor of the next page, None where nothing wanted can follow.

    holes: items of which GitHub told nothing. It fills a page that costs it too much with nulls, so nothing follows from them.
    """

    items: tuple[SeenItem, ...]
    after: str | None
    holes: int = 0


def read_facts(node: Node) -> RepositoryFacts:
    """Raises KeyError, TypeError or ValueError for what is no repository."""
    node_id, full_name = word(node["id"]), word(node["nameWithOwner"])
    database_id, archived, stars = (node.get(name) for name in ("databaseId", "isArchived", "stargazerCount"))
    if not isinstance(archived, bool | None):
        raise ValueError(f"archived is {str(archived)[:40]!r}")
    return RepositoryFacts(
        node_id,
        full_name,
        None if database_id is None else whole(database_id, most=MAX_ID),
        archived,
        None if stars is None else whole(stars),
    )


def read_page(node: Node, kind: ItemType, since: datetime) -> Page:
    """The items updated at `since` or later. Raises KeyError, TypeError or ValueError for anything that is not a page.

    A sweep is told ten pull requests of each repository, whatever their age, so what is older costs no more than a comparison.
    """
    connection = node[CONNECTIONS[kind]]
    items = []
    holes = 0
    recent = bool(connection["nodes"])  # where all are holes, older ones may be wanted too
    for item in connection["nodes"]:
        if item is None:
            holes += 1
            continue
        updated = _time(item["updatedAt"])
        recent = updated >= since
        if recent:
            created = item.get("createdAt")
            items.append(SeenItem(word(item["id"]), whole(item["number"], least=1), kind, updated, created and _time(created)))
    pages = connection["pageInfo"]
    after = pages["endCursor"] if pages["hasNextPage"] else None
    return Page(tuple(items), after if recent else None, holes)


def has_holes(node: object) -> bool:
    """Whether GitHub left something out of an item's lists, which it does for a moment and without a word. False for what is no item."""
    lists = [node.get(name) for name in ("labels", "comments")] if isinstance(node, dict) else []
    return any(None in told["nodes"] for told in lists if isinstance(told, dict) and isinstance(told.get("nodes"), list))


def read_item(node: Node, *, host: str) -> Item:
    """A fetched item. `comments` is None where they were not asked for. Raises Rejected."""
    try:
        return parse_item(_fields(node) | {"host": host})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Rejected(f"not an issue or pull request as GitHub describes them: {type(error).__name__} {error}") from error


def _fields(node: Node) -> dict[str, Any]:
    pull_request = node["__typename"] == "PullRequest"
    state = node["pullState"] if pull_request else node["state"]
    comments = node.get("comments")
    return {
        "repo": node["repository"]["nameWithOwner"],
        "number": node["number"],
        "type": "pull_request" if pull_request else "issue",
        "title": node["title"],
        "body": node["body"],
        "state": state.lower(),
        "url": node["url"],
        "author": _login(node),
        "labels": [label["name"] for label in node["labels"]["nodes"]],
        "comments": None if comments is None else [_comment(comment) for comment in comments["nodes"]],
        "comments_count": comments and comments["totalCount"],
        "created_at": node["createdAt"],
        "updated_at": node["updatedAt"],
        "closed_at": node["closedAt"],
        "merged_at": node.get("mergedAt"),
        "node_id": node["id"],
        "database_id": node["fullDatabaseId"] and int(str(node["fullDatabaseId"])),
    }


def _comment(node: Node) -> Comment:
    return Comment(body=node["body"], created_at=node["createdAt"], author=_login(node))


def _login(node: Mapping[str, Any]) -> str | None:
    """None: a deleted account."""
    author = node.get("author")
    return author["login"] if author else None


def _time(value: str) -> datetime:
    return in_utc(datetime.fromisoformat(value))
