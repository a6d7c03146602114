"""OTF Workflows: on-the-fly machine-learning molecular dynamics.

The front door. Everything is loaded on first use, so that importing costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from otf_workflows.campaign import Campaign
    from otf_workflows.control import submit
    from otf_workflows.errors import OtfError
    from otf_workflows.flow import CycleMaker, ProductionMaker
    from otf_workflows.labelers import get_labeler, parse_recipe
    from otf_workflows.local_run import run_locally
    from otf_workflows.potentials import load_potential
    from otf_workflows.report import write_report
    from otf_workflows.settings import Site, load_site
    from otf_workflows.store import Store

__version__ = "0.1.0"

_HOMES = {
    "Campaign": "campaign",
    "CycleMaker": "flow",
    "OtfError": "errors",
    "ProductionMaker": "flow",
    "Site": "settings",
    "Store": "store",
    "get_labeler": "labelers",
    "load_potential": "potentials",
    "load_site": "settings",
    "parse_recipe": "labelers",
    "run_locally": "local_run",
    "submit": "control",
    "write_report": "report",
}

__all__ = [
    "Campaign",
    "CycleMaker",
    "OtfError",
    "ProductionMaker",
    "Site",
    "Store",
    "get_labeler",
    "load_potential",
    "load_site",
    "parse_recipe",
    "run_locally",
    "submit",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module when it is first asked for."""
    if name not in _HOMES:
        msg = f"module '{__name__}' has no attribute '{name}'"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
