"""The commands of the web process: serve, mcp, report, keys and feedback.

Imports stand in the functions, so that a command starts quickly.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starsearch.errors import StarsearchError
from starsearch.settings import read_settings

if TYPE_CHECKING:
    from starsearch.store.web import ApiKey


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    host: Annotated[
        str, typer.Option(help="Where to listen. Anything but this machine's own address asks everybody for a key.")
    ] = "127.0.0.1",
    anyone: Annotated[bool, typer.Option("--anyone", help="On other addresses: ask nobody for a key.")] = False,
) -> None:
    """The search page, the HTTP API (/v1), MCP (/mcp), /healthz and /metrics, until stopped."""
    from starsearch.web.serve import access_for
    from starsearch.web.serve import serve as serve_until_stopped

    settings = read_settings()
    access = access_for(host, anyone=anyone, requests_per_minute=settings.requests_per_minute)
    typer.echo(f"http://{host}:{port}/ {'for whoever has a key' if access.keys_required else ''}".rstrip(), err=True)
    asyncio.run(serve_until_stopped(settings, host=host, port=port, access=access))


def mcp() -> None:
    """The MCP server over stdin and stdout, for an assistant on this machine; over HTTP it is part of `serve`."""
    asyncio.run(_mcp())


async def _mcp() -> None:
    from starsearch.web.site import open_site
    from starsearch.web.tools import build_tools

    async with open_site(read_settings()) as site:
        await build_tools(site).run_stdio_async()


def report(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="Where the HTML file goes.")],
    questions: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON Lines, as for `evaluate`: measures recall by mode too.")
    ] = None,
) -> None:
    """The plots of the status page, and recall by mode, as one HTML file that needs nothing else."""
    file.write_text(asyncio.run(_report(questions)), "utf-8")
    typer.echo(f"wrote {file}", err=True)


async def _report(questions: Path | None) -> str:
    from starsearch.evaluate import read_questions
    from starsearch.web.report import render_report
    from starsearch.web.site import open_site

    known = read_questions(questions) if questions else []
    async with open_site(read_settings()) as site:
        return await render_report(site, known)


keys = typer.Typer(no_args_is_help=True, help="Keys for programs and people that ask `serve` from other machines.")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Who will use it.")],
    per_minute: Annotated[int | None, typer.Option(min=1, help="Requests; default: STARSEARCH_REQUESTS_PER_MINUTE.")] = None,
) -> None:
    """Make a key and print it. It is stored as a hash: nobody can print it again."""
    typer.echo(asyncio.run(_create_key(name, per_minute)))


async def _create_key(name: str, per_minute: int | None) -> str:
    from psycopg.errors import UniqueViolation

    from starsearch.storage import open_store
    from starsearch.store.web import create_key

    async with open_store(read_settings()) as store:
        try:
            return await create_key(store.pool, name, per_minute)
        except UniqueViolation:
            raise StarsearchError(f"there is a key named {name}: choose another name, or `starsearch keys revoke {name}` first") from None


@keys.command("revoke")
def revoke_key(name: str) -> None:
    """End a key; it stops working within seconds."""
    if not asyncio.run(_revoke_key(name)):
        raise StarsearchError(f"there is no key named {name}")


async def _revoke_key(name: str) -> bool:
    from starsearch.storage import open_store
    from starsearch.store.web import revoke_key

    async with open_store(read_settings()) as store:
        return await revoke_key(store.pool, name)


@keys.command("list")
def list_keys(json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False) -> None:
    """Names, limits and dates; never the keys."""
    from starsearch.terminal import out, print_json
    from starsearch.untrusted import safe

    found = asyncio.run(_list_keys())
    if json:
        print_json([vars(key) for key in found])
        return
    for key in found:
        ended = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else f"{key.requests_per_minute or 'default'} requests a minute"
        out.print(safe(f"{key.name}  made {key.created_at:%Y-%m-%d}, {ended}"), markup=False)


async def _list_keys() -> "list[ApiKey]":
    from starsearch.storage import open_store
    from starsearch.store.web import list_keys

    async with open_store(read_settings()) as store:
        return await list_keys(store.pool)


def feedback(file: Annotated[Path, typer.Argument(dir_okay=False, help="Where the questions go, as JSON Lines.")]) -> None:
    """Write what people called useful as questions for `evaluate`: question, url, also_ok."""
    import orjson

    questions = asyncio.run(_feedback())
    file.write_bytes(b"".join(orjson.dumps(question) + b"\n" for question in questions))
    typer.echo(f"{len(questions):,} questions", err=True)


async def _feedback() -> list[dict[str, Any]]:
    from starsearch.storage import open_store
    from starsearch.store.web import read_questions

    async with open_store(read_settings()) as store:
        return await read_questions(store.pool)


def register(app: typer.Typer) -> None:
    for command in (serve, mcp, report, feedback):
        app.command()(command)
    app.add_typer(keys, name="keys")
