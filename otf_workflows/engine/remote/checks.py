"""What ``otf doctor`` asks where the engine is jobflow-remote."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from otf_workflows.engine.remote.controller import require_jobflow_remote
from otf_workflows.engine.remote.project import EXECUTE, INSTALL, project_document
from otf_workflows.engine.remote.ssh import refuse_unknown_hosts
from otf_workflows.errors import OtfError
from otf_workflows.preflight import Check
from otf_workflows.types import EngineKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otf_workflows.settings import Site

LOGIN_S = 20
"""How long the login node may take to answer (s)."""


def engine_checks(site: Site) -> Iterator[Check]:
    """Yield whether the engine is installed, and whether a login node lets us in and has it, too.

    Parameters
    ----------
    site
        The site; nothing is yielded for other engines.
    """
    if site.engine is not EngineKind.JOBFLOW_REMOTE:
        return
    name = "engine jobflow-remote"
    try:
        require_jobflow_remote()
        document = project_document(site)
    except OtfError as error:
        detail = f"{error.what} ({error.where})" if error.where else error.what
        yield Check(name=name, ok=False, detail=detail, hint=error.hint, exit_code=error.exit_code)
        return
    versions = [f"{package} {version(package)}" for package in ("jobflow-remote", "pymongo")]
    yield Check(name=name, ok=True, detail=" with ".join(versions))
    if site.remote.host is not None:
        yield _login(site, document)


def _login(site: Site, document: dict[str, Any]) -> Check:
    """Log in as the runner does, and look for our program over there."""
    from jobflow_remote.config.base import Project

    name = f"login on {site.remote.host}"
    refuse_unknown_hosts()
    project = Project.model_validate(document)
    for role, queue in site.queues.items():
        host = project.workers[str(role)].get_host()
        by_hand = f"ssh {'-p ' + str(site.remote.port) + ' ' if site.remote.port else ''}"
        by_hand += f"{site.remote.user + '@' if site.remote.user else ''}{site.remote.host}"
        try:
            host.connect()
            _, said, code = host.execute(
                f"{queue.python} -c 'import {EXECUTE}, jobflow_remote'", timeout=LOGIN_S
            )
        except Exception as error:  # noqa: BLE001 - whatever SSH, keys and names can do wrong
            return Check(
                name=name, ok=False, detail=f"{type(error).__name__}: {error}", hint=by_hand
            )
        finally:
            host.close()
        if code:
            last = said.strip().splitlines()[-1:] or [f"it ended with code {code}"]
            return Check(
                name=name,
                ok=False,
                detail=f"{queue.python} of queues.{role}: {last[0]}",
                hint=f"over there: {INSTALL}",
            )
    return Check(name=name, ok=True, detail="lets us in and has the program that runs jobs")
