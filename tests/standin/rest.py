"""GitHub's REST API as far as it is used: listing issues, searching repositories, the rate limit.

https://docs.github.com/rest/issues/issues https://docs.github.com/rest/search/search
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

from tests.standin.limits import Limits
from tests.standin.notation import iso, to_seconds
from tests.standin.replies import Reply, as_json, message
from tests.standin.search import RESULTS
from tests.standin.things import Item, Repository
from tests.standin.world import World

PULL_AS_ISSUE = 500_000_000  # of a pull request REST tells its issue's id, which is none of an issue's own


class Route(NamedTuple):
    """operation: the name that counters and faults know."""

    operation: str
    resource: str
    match: re.Match[str]


_ROUTES = (
    ("REST rate_limit", "", re.compile(r"GET /rate_limit")),
    ("REST issues", "core", re.compile(r"GET /repos/(?P<name>[^/]+/[^/]+)/issues")),
    ("REST issues", "core", re.compile(r"GET /repositories/(?P<id>\d+)/issues")),
    ("REST repository", "core", re.compile(r"GET /repos/(?P<name>[^/]+/[^/]+)")),
    ("REST repository", "core", re.compile(r"GET /repositories/(?P<id>\d+)")),
    ("REST search", "search", re.compile(r"GET /search/repositories")),
    ("REST access_tokens", "", re.compile(r"POST /app/installations/(?P<installation>\w+)/access_tokens")),
)


def route(method: str, path: str) -> Route | None:
    for operation, resource, pattern in _ROUTES:
        match = pattern.fullmatch(f"{method} {path}")
        if match:
            return Route(operation, resource, match)
    return None


def rate_limit(limits: Limits, credential: str) -> Reply:
    resources = {name: limits.window(credential, name).as_json() for name in ("core", "search", "graphql")}
    return as_json(200, {"resources": resources, "rate": resources["core"]})


def answer(world: World, asked: Route, query: Mapping[str, str], base: str, *, incomplete: bool) -> Reply:
    if asked.operation == "REST search":
        return _search(world, query, base, incomplete=incomplete)
    named = asked.match.groupdict()
    repository = world.find_repository(int(named["id"])) if named.get("id") else world.repository(named["name"])
    if repository is None or repository.is_private:
        return message(404, "Not Found")
    if "name" in named and named["name"].lower() != repository.full_name.lower():
        return _moved(repository, asked, query, base)
    if asked.operation == "REST repository":
        return as_json(200, _repository(repository))
    if not repository.has_issues:
        return message(410, "Issues has been disabled in this repository.")
    return _issues(repository, query, base)


def _moved(repository: Repository, asked: Route, query: Mapping[str, str], base: str) -> Reply:
    tail = "/issues" if asked.operation == "REST issues" else ""
    url = f"{base}/repositories/{repository.database_id}{tail}" + (f"?{urlencode(query)}" if query else "")
    return as_json(
        301, {"message": "Moved Permanently", "url": url, "documentation_url": "https://docs.github.com/rest"}, {"location": url}
    )


def _issues(repository: Repository, query: Mapping[str, str], base: str) -> Reply:
    since = to_seconds(query["since"]) if query.get("since") else 0
    state = query.get("state", "open")
    items = [item for item in repository.items(since) if state in {"all", "open" if item.state == "open" else "closed"}]
    orders = {
        "created": lambda i: (i.created, i.number),
        "updated": lambda i: (i.updated, i.number),
        "comments": lambda i: (len(i.comments), i.number),
    }
    items.sort(key=orders[query.get("sort", "created")], reverse=query.get("direction", "desc") == "desc")
    page, size = _page(query)
    rows = [_issue(item) for item in items[(page - 1) * size : page * size]]
    return as_json(200, rows, _links(f"{base}/repositories/{repository.database_id}/issues", query, page, size, len(items)))


def _search(world: World, query: Mapping[str, str], base: str, *, incomplete: bool) -> Reply:
    page, size = _page(query)
    if (page - 1) * size >= RESULTS:
        return message(422, "Only the first 1000 search results are available")
    sort = f"{query['sort']}-{query.get('order', 'desc')}" if query.get("sort") else ""
    count, ids = world.index.find(query.get("q", "") + (f" sort:{sort}" if sort else ""))
    found = [world.find_repository(int(number)) for number in ids[(page - 1) * size : page * size]]
    rows = [_repository(repository) for repository in found if repository]
    if incomplete:
        rows = rows[: len(rows) // 2]
    links = _links(f"{base}/search/repositories", query, page, size, len(ids))
    return as_json(200, {"total_count": count, "incomplete_results": incomplete, "items": rows}, links)


def _page(query: Mapping[str, str]) -> tuple[int, int]:
    return max(1, int(query.get("page", 1))), min(100, max(1, int(query.get("per_page", 30))))


def _links(url: str, query: Mapping[str, str], page: int, size: int, total: int) -> dict[str, str]:
    last = max(1, -(-total // size))
    pages = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
    told = [rel for rel in pages if (page < last if rel in {"next", "last"} else page > 1)]
    links = [f'<{url}?{urlencode({**query, "page": str(pages[rel])})}>; rel="{rel}"' for rel in told]
    return {"link": ", ".join(links)} if links else {}


def _issue(item: Item) -> dict[str, Any]:
    pull = item.typename == "PullRequest"
    api = f"https://api.github.com/repos/{item.repository.full_name}"
    row: dict[str, Any] = {
        "url": f"{api}/issues/{item.number}",
        "repository_url": api,
        "html_url": item.url,
        "id": item.database_id + (PULL_AS_ISSUE if pull else 0),
        "node_id": item.node_id,
        "number": item.number,
        "title": item.title,
        "user": {"login": item.author, "type": "User"} if item.author else None,
        "labels": [{"name": name} for name in item.labels],
        "state": "open" if item.state == "open" else "closed",
        "comments": len(item.comments),
        "created_at": iso(item.created),
        "updated_at": iso(item.updated),
        "closed_at": iso(item.closed),
        "body": item.body or None,
    }
    if pull:
        row["pull_request"] = {"url": f"{api}/pulls/{item.number}", "html_url": item.url, "merged_at": iso(item.merged)}
    return row


def _repository(repository: Repository) -> dict[str, Any]:
    return {
        "id": repository.database_id,
        "node_id": repository.node_id,
        "full_name": repository.full_name,
        "html_url": repository.url,
        "private": repository.is_private,
        "fork": repository.is_fork,
        "archived": repository.is_archived,
        "disabled": repository.is_disabled,
        "has_issues": repository.has_issues,
        "stargazers_count": repository.stars,
        "created_at": iso(repository.created),
    }
