"""The engine that a site file asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otf_workflows.types import EngineKind

if TYPE_CHECKING:
    from otf_workflows.engine.fireworks_engine import FireWorksEngine
    from otf_workflows.engine.remote.engine import JobflowRemoteEngine
    from otf_workflows.settings import Site


def open_engine(site: Site, *, patience_s: float = 3.0) -> FireWorksEngine | JobflowRemoteEngine:
    """Return the engine of a site.

    Parameters
    ----------
    site
        The site.
    patience_s
        How long to wait for a database server that does not answer (s).

    Raises
    ------
    ConfigurationError
        If the site file asks for jobflow-remote, which is not installed.
    DatabaseError
        If the server does not answer or refuses us.
    """
    if site.engine is EngineKind.JOBFLOW_REMOTE:
        from otf_workflows.engine.remote.engine import JobflowRemoteEngine

        return JobflowRemoteEngine(site, patience_s=patience_s)
    from otf_workflows.engine.fireworks_engine import FireWorksEngine

    return FireWorksEngine(site, patience_s=patience_s)
