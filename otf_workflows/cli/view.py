"""Progress of campaigns in words and tables; the same for ``otf status`` and ``otf run``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otf_workflows.cli import output
from otf_workflows.types import LabelState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from otf_workflows.progress import CampaignProgress, CycleErrors

GLANCE = ["campaign", "state", "now", "labels", "failed", "audit RMSE (eV/Å)", "left"]
_MODELS = ("pretrained/audit", "incumbent/audit", "challenger/audit", "incumbent/fresh")


def glance_row(progress: CampaignProgress) -> list[object]:
    """Return one campaign as a row of the table of all."""
    labels = progress.labels
    left = "" if progress.state.terminal else remaining(progress)
    return [
        progress.name,
        str(progress.state),
        progress.sentence,
        f"{labels[LabelState.DONE]} of {sum(labels.values())}",
        labels[LabelState.FAILED] + labels[LabelState.QUARANTINED],
        latest_rmse(progress),
        left,
    ]


def line(progress: CampaignProgress) -> str:
    """Return one line for logs and pipes."""
    from otf_workflows.progress import present_stage

    now = progress.sentence
    row = present_stage(progress.stages)
    if row is not None and row.seconds is not None and not progress.state.terminal:
        now += f", for {output.duration(row.seconds)}"
    parts = [now, labels_words(progress)]
    if not progress.state.terminal:
        parts.append(remaining(progress))
    return " | ".join(part for part in parts if part)


def labels_words(progress: CampaignProgress) -> str:
    """Return ``labels: 5 done, 2 running``."""
    counts = [f"{n} {state}" for state, n in progress.labels.items() if n]
    return "labels: " + (", ".join(counts) if counts else "none yet")


def remaining(progress: CampaignProgress) -> str:
    """Return what is known about the time left, in words."""
    estimate = progress.estimate
    parts = []
    if estimate.stage_s is not None:
        parts.append(f"this stage {output.duration(estimate.stage_s)}")
    if estimate.total_s is not None:
        parts.append(f"at most {output.duration(estimate.total_s)} in all")
    return ", ".join(parts) or "time left not known yet"


def latest_rmse(progress: CampaignProgress) -> float | None:
    """Return the audit force RMSE (eV/Å) of the model that the last judged cycle ended with."""
    for cycle in reversed(progress.errors):
        best = "challenger/audit" if cycle.promoted else "incumbent/audit"
        if best in cycle.errors:
            return cycle.errors[best].force_rmse_eV_A
    return None


def details(progress: CampaignProgress) -> list[str]:
    """Return one campaign in plain lines."""
    lines = [
        f"campaign   {progress.name}",
        # A campaign that has ended says its reason in the sentence.
        f"{'ended ' if progress.state.terminal else 'now   '}     {progress.sentence}",
        f"labels     {labels_words(progress).removeprefix('labels: ')}",
        f"model      {progress.incumbent_id}",
        (
            f"MD         {progress.md_steps} steps for {progress.dft_calls} DFT calls: "
            f"{progress.aimd_steps} AIMD steps not computed"
        ),
        f"time       {output.duration(progress.elapsed_s)} so far",
    ]
    if not progress.state.terminal:
        lines.append(f"left       {remaining(progress)}")
        lines += [f"           {sentence}" for sentence in progress.estimate.basis]
    return lines


def stage_rows(progress: CampaignProgress) -> list[list[object]]:
    """Return the stages of the current cycle as table rows."""
    return [
        [row.stage, row.n_jobs, row.n_done, row.n_running, row.n_failed,
         output.duration(row.seconds) if row.seconds is not None else None]
        for row in progress.stages
    ]  # fmt: skip


def error_rows(errors: Sequence[CycleErrors]) -> list[list[object]]:
    """Return force RMSE (eV/Å) of each cycle as table rows."""
    return [
        [
            "production" if item.kind == "production" else item.cycle,
            *(item.errors[key].force_rmse_eV_A if key in item.errors else None for key in _MODELS),
            None if item.promoted is None else "promoted" if item.promoted else "kept the old one",
        ]
        for item in errors
        if any(key in item.errors for key in _MODELS)
    ]


STAGES = ["stage", "jobs", "done", "running", "failed", "time"]
ERRORS = ["cycle", "pretrained, audit", "incumbent, audit", "challenger, audit",
          "incumbent, fresh", "verdict"]  # fmt: skip
ERRORS_TITLE = "force RMSE (eV/Å) on labels not trained on"


def print_details(progress: CampaignProgress) -> None:
    """Print one campaign in full on stdout."""
    for text in details(progress):
        output.data(text)
    if progress.stages:
        output.data("")
        output.print_table(STAGES, stage_rows(progress))
    if progress.errors:
        output.data("")
        output.data(ERRORS_TITLE)
        output.print_table(ERRORS, error_rows(progress.errors))


def panel(progress: CampaignProgress) -> RenderableType:
    """Return one campaign as a live picture for a terminal."""
    from rich.console import Group
    from rich.text import Text

    head = Text(progress.name, style="bold")
    head.append(f"  {progress.sentence}", style="not bold")
    parts: list[RenderableType] = [head]
    if progress.stages:
        parts.append(output.rich_table(STAGES, stage_rows(progress)))
    if progress.errors:
        parts += [Text(ERRORS_TITLE), output.rich_table(ERRORS, error_rows(progress.errors))]
    parts.append(Text("\n".join(details(progress)[2:])))
    return Group(*parts)
