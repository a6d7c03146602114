"""From report data to one HTML file that can be mailed, printed and read in ten years."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from otf_workflows.errors import ConfigurationError
from otf_workflows.report import figures, honesty, words
from otf_workflows.report.data import report_data
from otf_workflows.types import CampaignState, LabelState

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Environment

    from otf_workflows.report.model import ReportData
    from otf_workflows.store import Store

MAX_WALKER_FIGURES = 8
MAX_DECISIONS = 200
ICONS = {
    CampaignState.RUNNING: "▶",
    CampaignState.PRODUCING: "▶",
    CampaignState.PAUSED: "⏸",
    CampaignState.CONVERGED: "✔",
    CampaignState.BUDGET_EXHAUSTED: "■",
    CampaignState.STALLED: "▲",
    CampaignState.FAILED: "✘",
    CampaignState.STOPPED: "■",
}


def write_report(store: Store, campaign: str, path: Path) -> Path:
    """Write the report of a campaign, finished or not.

    Parameters
    ----------
    store
        Where the documents are.
    campaign
        Name of the campaign.
    path
        File to write; replaced in one step if it exists.

    Returns
    -------
    Path
        The absolute path of the file.

    Raises
    ------
    NotFoundError
        If there is no such campaign.
    ConfigurationError
        If the file cannot be written.
    """
    html = render(report_data(store, campaign))
    path = path.expanduser().absolute()
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".report-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(html)
        os.chmod(temporary, 0o644)  # noqa: PTH101  # mkstemp gives a bare name
        os.replace(temporary, path)  # noqa: PTH105
    except OSError as error:
        raise ConfigurationError(
            f"the report cannot be written: {error.strerror}",
            where=str(path),
            hint=f"otf report {campaign} -o FILE   (in a folder that exists and is yours)",
        ) from error
    return path


def render(data: ReportData) -> str:
    """Return the page as HTML."""
    from markupsafe import Markup

    style = files("otf_workflows.report").joinpath("templates/report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    drawn = {k: Markup(v) if v else None for k, v in _figures(data).items()}  # noqa: S704
    walkers = [Markup(svg) for svg in _walker_figures(data)]  # noqa: S704  # our own SVG
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            data=data,
            style=Markup(style),  # noqa: S704  # our own file, and its hash must fit
            style_hash=digest,
            figures=drawn,
            walkers=walkers,
            walkers_hidden=max(len(data.curves.walkers) - MAX_WALKER_FIGURES, 0),
            icon=ICONS[data.state],
            change=_change(data),
            settings_yaml=_settings(data),
            decisions=data.decisions[-MAX_DECISIONS:],
            max_decisions=MAX_DECISIONS,
            label_states=[state for state in LabelState if _shown(state, data)],
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("otf_workflows.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "core_hours": words.core_hours,
        "count": words.count,
        "duration": words.duration,
        "interval": words.interval,
        "listing": words.listing,
        "percent": words.percent,
        "thousands": words.thousands,
    }
    return environment


def _figures(data: ReportData) -> dict[str, str | None]:
    curves, errors = data.curves, data.errors
    limit = figures.force_limit(curves.before, curves.after)
    changed = data.final_model != data.pretrained_model
    return {
        "parity_before": figures.force_parity(
            curves.before,
            errors.pretrained,
            title="Before: pretrained",
            final=False,
            limit_eV_A=limit,
        ),
        "parity_after": figures.force_parity(
            curves.after,
            errors.final,
            title=f"After: {'final model' if data.finished else 'model in use'}",
            final=True,
            limit_eV_A=limit,
        )
        if changed
        else None,
        "energies": figures.energy_parity(curves.before, curves.after, ended=bool(data.finished)),
        "learning": figures.learning_curve(data.cycles, tolerance_eV_A=data.tolerance_eV_A),
        "sigma": figures.uncertainty_against_error(curves.uncertainty, data.coverage),
        "reliability": honesty.reliability_diagram(data.coverage),
        "production_sigma": figures.production_uncertainty(
            curves.production_sigma, tolerance_eV_A=data.tolerance_eV_A
        ),
        "production_temperature": figures.production_temperature(
            curves.production_temperature,
            thermostat_K=data.production.conditions.get("temperature_K")
            if data.production
            else None,
        ),
        "rdf": figures.curves(
            curves.rdf,
            name="rdf",
            xlabel="distance r (Å)",
            ylabel="g(r)",
            level=1.0,
            alt="Radial distribution functions",
        ),
        "msd": figures.curves(
            curves.msd,
            name="msd",
            xlabel="time lag (ps)",
            ylabel="MSD (Å²)",
            alt="Mean square displacements",
        ),
    }


def _walker_figures(data: ReportData) -> list[str]:
    """Return the figures of the first cycle and of the newest ones."""
    cycles = sorted(data.curves.walkers)
    if len(cycles) > MAX_WALKER_FIGURES:
        cycles = [cycles[0], *cycles[-(MAX_WALKER_FIGURES - 1) :]]
    every = [segment for segments in data.curves.walkers.values() for segment in segments]
    drawn = [
        figures.walker_uncertainty(
            data.curves.walkers[cycle],
            cycle=cycle,
            tolerance_eV_A=data.tolerance_eV_A,
            timestep_fs=data.settings["exploration"]["timestep_fs"],
            limits_eV_A=figures.sigma_limits(every, data.tolerance_eV_A),
        )
        for cycle in cycles
    ]
    return [svg for svg in drawn if svg]


def _shown(state: LabelState, data: ReportData) -> bool:
    """Return whether a state deserves a column: done and failed always do."""
    return state in {LabelState.DONE, LabelState.FAILED} or data.label_counts[state] > 0


def _change(data: ReportData) -> str | None:
    """Return the change of the error in words."""
    before, after = data.errors.pretrained, data.errors.final
    if before is None or after is None or data.final_model == data.pretrained_model:
        return None
    ratio = before.force_rmse_eV_A / after.force_rmse_eV_A
    if after.force_rmse_high_eV_A < before.force_rmse_low_eV_A:
        return f"{ratio:.1f} times smaller; the intervals do not overlap"
    if before.force_rmse_high_eV_A < after.force_rmse_low_eV_A:
        return f"{1 / ratio:.1f} times LARGER; the intervals do not overlap"
    return "the intervals overlap: the difference may be chance"


def _settings(data: ReportData) -> str:
    """Return the campaign file as YAML, its structure shortened to a line."""
    import yaml

    shown: dict[str, Any] = dict(data.settings)
    shown["structure"] = f"{data.material.formula}, {data.material.n_atoms} atoms"
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, default_flow_style=None)
