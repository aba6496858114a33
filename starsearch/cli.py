"""The `starsearch` command: the same functions that the flows wrap, in this process, without Prefect.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a precondition is missing and the message says what to do, 130 Ctrl-C. Results go to stdout,
everything else to stderr. The commands themselves are in commands/.
"""

import logging
import os
import sys
from typing import NoReturn

import typer

from starsearch.commands import fill, find, keep, ledger, versions, web
from starsearch.errors import PreconditionMissing, StarsearchError
from starsearch.logs import write_logs, writes_json
from starsearch.settings import read_settings
from starsearch.untrusted import safe

log = logging.getLogger("starsearch.cli")  # run as a module, __name__ is another

app = typer.Typer(
    help="Know what is going on across GitHub: crawl, summarize, embed, search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    keep.doctor, keep.migrate, fill.ingest, fill.rank, fill.crawl, fill.backfill, fill.digest,
    find.search, find.ask, find.explain, find.evaluate, keep.status, keep.pause, keep.resume, ledger.cost, versions.reprocess,
    keep.purge, keep.engine,
):  # fmt: skip
    app.command()(_command)
app.add_typer(ledger.dead_letters, name="dead-letters")
app.add_typer(versions.versions, name="versions")
web.register(app)


def main() -> None:
    """Entry point; turns our errors into a message and an exit code."""
    _write_logs()
    try:
        app()
    except StarsearchError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("stopped; run the same command again to go on", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(str(error), 1)


def _write_logs() -> None:
    """As the settings say. The command reads them too, and tells what is wrong with them."""
    try:
        settings = read_settings()
    except PreconditionMissing:
        write_logs("text", "WARNING")
    else:
        write_logs(settings.log, settings.log_level or (None if settings.log == "json" else "WARNING"))


def _fail(reason: str, exit_code: int) -> NoReturn:
    if writes_json():
        log.error("%s", reason)
    else:
        typer.echo(f"starsearch: {safe(reason)}", err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
