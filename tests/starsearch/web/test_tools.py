"""The MCP server, asked by the official SDK's client over both of its transports."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from starsearch.web.tools import NOTICE
from tests.starsearch.web.serving import Served

Connect = Callable[[Served], object]
CALLS = {
    "search": {"query": "sockets leak", "limit": 3, "type": "issue"},
    "get_item": {"address": "https://github.com/brasslantern/ferrygate/issues/412"},
    "similar": {"address": "brasslantern/ferrygate#419"},  # its fix
}


@asynccontextmanager
async def over_http(served: Served) -> AsyncIterator[Client]:
    async with Client(streamable_http_client(served.base + "/mcp")) as client:
        yield client


@asynccontextmanager
async def over_stdio(served: Served) -> AsyncIterator[Client]:
    command = StdioServerParameters(command=sys.executable, args=["-m", "starsearch.cli", "mcp"], env=served.environment)
    async with Client(stdio_client(command)) as client:
        yield client


@pytest.mark.parametrize("connect", [over_http, over_stdio])
async def test_every_tool_is_listed_and_answers(served: Served, connect: Connect):
    async with connect(served) as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == {*CALLS, "ask"}
        assert all(tool.annotations and tool.annotations.read_only_hint and tool.description for tool in tools)
        for name, arguments in CALLS.items():
            answer = await client.call_tool(name, arguments)
            assert not answer.is_error, answer
            told = answer.structured_content
            assert told["notice"] == NOTICE
            assert told["items"][0]["url"] == "https://github.com/brasslantern/ferrygate/issues/412"
            assert told["items"][0]["untrusted"]["title"].startswith("CLOSE_WAIT")
            # nothing of a stranger's stands outside `untrusted`
            assert not {"title", "summary", "body", "author", "labels"} & set(told["items"][0])
        answer = (await client.call_tool("ask", {"question": "why do sockets stay in CLOSE_WAIT?"})).structured_content
        assert (answer["notice"], answer["kind"]) == (NOTICE, "quotes")
        assert all(f"[{number}]" in answer["untrusted_answer"] for number in answer["citations"])
        assert "https://github.com/brasslantern/ferrygate/issues/412" in {told["url"] for told in answer["citations"].values()}


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("search", {"query": ""}, "query"),
        ("search", {"query": "x", "repo": "not a repository"}, "repo: write owner/name"),
        ("search", {"query": "x", "limit": 5_000}, "limit"),
        ("get_item", {"address": "nonsense"}, "write a GitHub issue or pull request URL"),
        ("get_item", {"address": "brasslantern/ferrygate#99999"}, "is not stored here"),
    ],
)
async def test_bad_calls_get_a_sentence(served: Served, tool: str, arguments: dict, sentence: str):
    async with over_http(served) as client:
        answer = await client.call_tool(tool, arguments)
    assert answer.is_error
    assert sentence in answer.content[0].text
