"""Whatever runs the jobs: FireWorks with its workers, jobflow-remote, or this process alone.

Only this package uses either of them. Its names are looked up when they are first used, so that
importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otf_workflows.engine.base import Engine, JobRecord, JobState
    from otf_workflows.engine.choice import open_engine
    from otf_workflows.engine.fireworks_engine import FireWorksEngine
    from otf_workflows.engine.local import LocalEngine
    from otf_workflows.engine.mongod import EmbeddedMongod
    from otf_workflows.engine.supervisor import Supervisor, services

__all__ = [
    "EmbeddedMongod",
    "Engine",
    "FireWorksEngine",
    "JobRecord",
    "JobState",
    "LocalEngine",
    "Supervisor",
    "open_engine",
    "services",
]

_HOMES = {
    "EmbeddedMongod": "mongod",
    "Engine": "base",
    "FireWorksEngine": "fireworks_engine",
    "JobRecord": "base",
    "JobState": "base",
    "LocalEngine": "local",
    "Supervisor": "supervisor",
    "open_engine": "choice",
    "services": "supervisor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
