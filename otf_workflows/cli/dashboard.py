"""``otf dashboard``: the web page, and the address of one that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from otf_workflows.cli import output
from otf_workflows.cli.session import Session, session

app = typer.Typer(help="Show campaigns and the launch pad in a browser.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def dashboard(
    ctx: typer.Context,
    *,
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="Default: the last one used, 8700, or any."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "127.0.0.1",
    uds: Annotated[
        Path | None,
        typer.Option("--uds", metavar="FILE", help="Listen on a socket file instead of a port."),
    ] = None,
    allow_actions: Annotated[
        bool, typer.Option("--allow-actions", help="Let the page pause, stop, rerun and submit.")
    ] = False,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Permit a --host that other machines reach.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host", metavar="NAME", help="Name of a proxy in front. Repeatable."
        ),
    ] = None,
    root_path: Annotated[
        str, typer.Option("--root-path", metavar="/PREFIX", help="Path that a proxy puts in front.")
    ] = "",
    new_token: Annotated[
        bool, typer.Option("--new-token", help="Lock out every browser that was let in before.")
    ] = False,
    open_browser: Annotated[
        bool,
        typer.Option("--open/--no-open", help="Open a browser, where this machine has a screen."),
    ] = True,
) -> None:
    """Show campaigns and the launch pad in a browser, until Ctrl-C. It only looks by default."""
    if ctx.invoked_subcommand is not None:
        return
    from otf_workflows.dashboard import serve
    from otf_workflows.dashboard.settings import DashboardSettings

    _require_extra()
    here = session(ctx)
    serve.check_address(host=host, allow_remote=allow_remote)
    site = here.site
    folder = site.resolved_state_dir
    before = serve.Note.read(folder)
    _prepare_database(here)
    settings = DashboardSettings(
        site=site,
        token=before.token if before and not new_token else serve.new_token(),
        allow_actions=allow_actions,
        host=host,
        port=0 if uds else serve.choose_port(port, before),
        uds=serve.check_socket(uds) if uds else None,
        root_path=serve.clean_prefix(root_path),
        allowed_hosts=serve.own_names(host, allowed_host or []),
    )
    note = serve.note_of(settings)
    note.write(folder)

    def on_ready() -> None:
        output.data(note.url)
        output.note(f"From your own machine: {note.tunnel}")
        output.note("then open the address above there. Ctrl-C ends the dashboard, nothing else.")
        if not allow_actions:
            output.note("It only looks; --allow-actions lets it rerun, pause and submit.")
        if open_browser and not uds:
            serve.open_browser(note.url)

    serve.serve(settings, on_ready=on_ready)


@app.command("url")
def url(ctx: typer.Context) -> None:
    """Print the address of the dashboard that runs, with its token."""
    from otf_workflows.dashboard import serve

    note = serve.last_note(session(ctx).site.resolved_state_dir)
    output.data(note.url)
    output.note(f"From your own machine: {note.tunnel}")


def _require_extra() -> None:
    """Refuse with the command that helps if the web packages are not installed."""
    from importlib.util import find_spec

    from otf_workflows.errors import ConfigurationError

    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if not find_spec(name)]
    if missing:
        raise ConfigurationError(
            f"The dashboard needs {' and '.join(missing)}, which is not installed.",
            hint="pip install 'otf-workflows[dashboard]'",
        )


def _prepare_database(here: Session) -> None:
    """Make the indexes that the pages need; a user who may only read goes on without."""
    from otf_workflows.dashboard.queries.indexes import ensure_indexes

    with_right = ensure_indexes(here.store.database)
    if not with_right:
        output.note("This database user may not make indexes; pages may be slow (otf doctor).")
