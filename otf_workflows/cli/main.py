"""The ``otf`` command: global options, the list of commands, and how errors become exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from otf_workflows.cli import (
    control,
    dashboard,
    doctor,
    export,
    init,
    labels,
    launch,
    lineage,
    models,
    output,
    report,
    run,
    schema,
    services,
    status,
    submit,
    trajectory,
    validate,
)
from otf_workflows.cli.session import Session

if TYPE_CHECKING:
    from otf_workflows.errors import OtfError

EPILOG = """\b
Exit codes
  0  done                          4  database unreachable or refusing
  1  failed                        5  this site is not set up
  2  wrong input or usage          6  done in part, the rest refused
  3  nothing matched             130  interrupted
Global options may stand anywhere. stdout is data, everything else goes to stderr.
"""

_FLAGS = {"--debug", "--no-input", "-q", "--quiet", "-v", "-vv", "--verbose"}
"""Global options without a value."""


class Commands(TyperGroup):
    """A group whose help lists commands by purpose."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, one section for each purpose."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is None or command.hidden:
                continue
            title = getattr(command, "rich_help_panel", None)
            panel = title if isinstance(title, str) else "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(limit=70)))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)


app = typer.Typer(
    name="otf",
    cls=Commands,
    help="On-the-fly machine-learning molecular dynamics.",
    epilog=EPILOG,
    no_args_is_help=True,
    # Plain help: rich would take longer to import than everything else together.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(*, value: bool) -> None:
    if value:
        from otf_workflows import __version__

        output.data(f"otf-workflows {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    *,
    site: Annotated[
        Path | None,
        typer.Option("--site", metavar="FILE", help="Site file; default: $OTF_SITE_FILE."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notes on stderr.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Log more; twice for all.")
    ] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # noqa: ARG001  read by main()
    no_input: Annotated[bool, typer.Option("--no-input", help="Never ask a question.")] = False,
    version: Annotated[  # noqa: ARG001  handled by its callback
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """On-the-fly machine-learning molecular dynamics."""
    output.be_quiet(quiet=quiet)
    if verbose:
        import logging

        from otf_workflows.log import log_to_stderr

        log_to_stderr(level=logging.INFO if verbose == 1 else logging.DEBUG)
    ctx.obj = Session(site_file=site, no_input=no_input)


_START, _RUN, _LOOK, _ACT = "Get started", "Run", "Look", "Act"

app.command("init", rich_help_panel=_START)(init.init)
app.command("validate", rich_help_panel=_START)(validate.validate)
app.command("schema", rich_help_panel=_START)(schema.schema)
app.command("doctor", rich_help_panel=_START)(doctor.doctor)
app.command("run", rich_help_panel=_RUN)(run.run)
app.command("submit", rich_help_panel=_RUN)(submit.submit)
app.command("up", rich_help_panel=_RUN)(services.up)
app.command("down", rich_help_panel=_RUN)(services.down)
app.command("launch", rich_help_panel=_RUN)(launch.launch)
app.command("status", rich_help_panel=_LOOK)(status.status)
app.add_typer(dashboard.app, name="dashboard", rich_help_panel=_LOOK)
app.add_typer(labels.app, name="labels", rich_help_panel=_LOOK)
app.add_typer(models.app, name="models", rich_help_panel=_LOOK)
app.command("lineage", rich_help_panel=_LOOK)(lineage.lineage)
app.command("report", rich_help_panel=_LOOK)(report.report)
app.command("export", rich_help_panel=_LOOK)(export.export)
app.command("trajectory", rich_help_panel=_LOOK)(trajectory.trajectory)
app.command("reconcile", rich_help_panel=_ACT)(control.reconcile)
app.command("pause", rich_help_panel=_ACT)(control.pause)
app.command("resume", rich_help_panel=_ACT)(control.resume)
app.command("stop", rich_help_panel=_ACT)(control.stop)


def global_options_first(arguments: list[str]) -> list[str]:
    """Return the arguments with global options in front, wherever they stood.

    ``otf status --site here.yaml`` is what people type; what follows ``--`` is left alone.
    """
    front: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            rest += [word, *waiting]
            break
        if word in _FLAGS or word.startswith("--site="):
            front.append(word)
        elif word == "--site" and waiting and "init" not in rest:
            front += [word, waiting.pop(0)]
        else:
            rest.append(word)
    return front + rest


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with a documented exit code."""
    from otf_workflows.errors import OtfError

    words = global_options_first(sys.argv[1:] if arguments is None else arguments)
    try:
        app(words, prog_name="otf")
    except OtfError as error:
        if "--debug" in words:
            raise
        output.print_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone; that is its right.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if "--debug" in words:
            raise
        output.print_error(_unexpected(error))
        sys.exit(1)


def _unexpected(error: Exception) -> OtfError:
    """Return a mistake of ours in the form of an error a person can act on."""
    from otf_workflows.errors import OtfError

    if type(error).__module__.startswith("pymongo"):
        from otf_workflows.errors import DatabaseError

        return DatabaseError(
            f"the database failed in the middle: {str(error).splitlines()[0][:200]}",
            hint="otf doctor",
        )
    if type(error).__name__ == "ValidationError":
        return OtfError(
            f"a document does not fit this version of otf-workflows: {str(error).splitlines()[0]}",
            where=", ".join(str(error).splitlines()[1:2]),
            hint="use the version that wrote it, or a database of its own (OTF_STATE_DIR)",
        )
    return OtfError(
        f"unexpected {type(error).__name__}: {error}",
        where="a mistake in otf-workflows",
        hint="run the command again with --debug and report the traceback",
    )


if __name__ == "__main__":
    main()
