"""Tables and plots of what ``alloy_oracle.py`` computed: ``python alloy_tables.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.honesty import auroc_worst, spearman

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MODELS = {"final": "#0072b2", "random": "#009e73", "pretrained": "#d55e00"}
WINDOWS = 10


def show(blocks: Mapping[str, dict[str, Any]], folder: Path) -> None:
    """Print all tables, and write the plots."""
    facts = blocks["cycles"]
    tolerance = facts["tolerance_eV_A"]
    print(f"\nTolerance {tolerance:g} eV/Å of the worst atom; state: {blocks['campaign']['state']}")
    print_cycles(blocks)
    rows = [b for b in blocks.values() if b.get("kind")]
    for threshold in sorted({tolerance, 0.5 * tolerance, 2 * tolerance}):
        print_misses(rows, threshold, ran_with=tolerance)
    print_errors(rows)
    print_time(rows)
    print_saved(blocks, rows)
    plot(rows, tolerance, folder)


def print_cycles(blocks: Mapping[str, dict[str, Any]]) -> None:
    """Print what each cycle did."""
    facts = blocks["cycles"]
    print("\ncycle  labels  factor   floor  from  MD steps kept of run            promoted")
    for cycle in facts["cycles"]:
        pairs = zip(cycle["steps_kept"], cycle["steps_run"], strict=True)
        steps = ", ".join(f"{kept}/{run}" for kept, run in pairs) or cycle["kind"]
        print(
            f"{cycle['cycle']:5d}  {cycle['labels']:6d}  {said(cycle['calibration'])}  "
            f"{steps:30s}  {'yes' if cycle['promoted'] else 'no'}"
        )
    print(f"final   {said(facts['final_calibration'])}  {facts['final']}")


def said(calibration: Mapping[str, Any]) -> str:
    """Return factor, floor and number of labels of a calibration."""
    floor = calibration.get("floor_eV_A", 0.0)
    return f"{calibration['factor']:6.2f}  {floor:6.3f}  {calibration['n']:4d}"


def groups(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return blocks by what they have in common: cycle of walkers, production, oracle's MD."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = row["kind"]
        if name == "walker":
            name = f"walkers, cycle {row['cycle']}" + ("" if row["calibrated"] else " (uncalibr.)")
            found.setdefault(name, []).append(row)
            if row["calibrated"]:
                found.setdefault("walkers, all calibrated", []).append(row)
        else:
            found.setdefault(row["name"], []).append(row)
            if name != "larger":
                found.setdefault(f"{name}, all", []).append(row)
    return found


def driver(row: dict[str, Any]) -> str:
    """Return whose σ a block holds."""
    return "driver" if "driver" in row["errors"] else "final"


def joined(rows: Sequence[dict[str, Any]], model: str | None = None) -> dict[str, np.ndarray]:
    """Return σ and errors of all frames of some blocks, one after the other."""
    errors = [row["errors"][model or driver(row)] for row in rows]
    return {
        "sigma": np.concatenate([row["sigma_eV_A"] for row in rows]),
        "worst": np.concatenate([e["worst_eV_A"] for e in errors]),
        "square": np.concatenate([e["square_eV2_A2"] for e in errors]),
        "force": np.concatenate([row["worst_force_eV_A"] for row in rows]),
    }


def misses(sigma: np.ndarray, worst: np.ndarray, threshold: float) -> dict[str, float]:
    """Return what a threshold on σ let pass and held up; NaN where there was nothing to judge."""

    def share(part: np.ndarray, whole: np.ndarray) -> float:
        return float(part.sum() / whole.sum()) if whole.any() else float("nan")

    bad, trusted = worst > threshold, sigma <= threshold
    return {
        "n": len(worst),
        "bad": float(bad.mean()),
        "missed": share(bad & trusted, bad),
        "bad_of_trusted": share(bad & trusted, trusted),
        "false_alarms": share(~bad & ~trusted, ~bad),
        "coverage": float((worst <= sigma).mean()),
        "worst_miss": float(worst[bad & trusted].max(initial=0.0)) / threshold,
    }


def print_misses(rows: Sequence[dict[str, Any]], threshold: float, *, ran_with: float) -> None:
    """Print how σ did as a judge, at one threshold."""
    note = "" if threshold == ran_with else " (had it been asked for on the same frames)"
    print(f"\nMisses and false alarms at {threshold:g} eV/Å{note}")
    print(
        f"{'frames':28s}     n   bad  missed  trusted-but-bad  false alarms  σ covers  "
        "worst miss/tol  Spearman (|F|)  AUROC (|F|)"
    )
    for name, group in groups(rows).items():
        data = joined(group)
        found = misses(data["sigma"], data["worst"], threshold)
        ranks = [spearman(data["worst"], data[x]) or 0.0 for x in ("sigma", "force")]
        areas = [auroc_worst(data["worst"], data[x]) or 0.0 for x in ("sigma", "force")]
        print(
            f"{name:28s} {found['n']:5.0f}  {found['bad']:4.0%}  {found['missed']:6.1%}  "
            f"{found['bad_of_trusted']:15.1%}  {found['false_alarms']:12.1%}  "
            f"{found['coverage']:8.1%}  {found['worst_miss']:14.2f}  "
            f"{ranks[0]:8.2f} ({ranks[1]:.2f})  {areas[0]:5.2f} ({areas[1]:.2f})"
        )


def print_errors(rows: Sequence[dict[str, Any]]) -> None:
    """Print force RMSEs of all models on the same frames."""
    print("\nForce RMSE (eV/Å) on the same frames; worst atom: median over frames")
    print(
        f"{'frames':28s}     n  |  driver  final  random  pretrained  |  final  random  pretrained"
    )
    for name, group in groups(rows).items():
        found = {model: joined(group, model) for model in MODELS}
        rmse = {model: np.sqrt(data["square"].mean()) for model, data in found.items()}
        middle = {model: np.median(data["worst"]) for model, data in found.items()}
        own = np.sqrt(joined(group)["square"].mean())
        print(
            f"{name:28s} {len(found['final']['worst']):5d}  |  {own:6.3f} {rmse['final']:6.3f}  "
            f"{rmse['random']:6.3f}  {rmse['pretrained']:10.3f}  |  {middle['final']:5.2f}  "
            f"{middle['random']:6.2f}  {middle['pretrained']:10.2f}"
        )


def print_time(rows: Sequence[dict[str, Any]]) -> None:
    """Print the error of long runs over simulated time."""
    print(f"\nForce RMSE (eV/Å) over simulated time, in {WINDOWS} windows")
    for row in rows:
        if row["kind"] != "production":
            continue
        print(f"{row['name']}: {row['n_steps']} steps, ended: {row['stop']}")
        for model in MODELS:
            squares = np.array_split(row["errors"][model]["square_eV2_A2"], WINDOWS)
            print(f"  {model:10s} " + " ".join(f"{np.sqrt(part.mean()):.3f}" for part in squares))


def print_saved(blocks: Mapping[str, dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
    """Print how many AIMD steps one label replaced."""
    n_labels = blocks["cycles"]["n_labels"]
    walked = sum(sum(cycle["steps_run"]) for cycle in blocks["cycles"]["cycles"])
    produced = sum(row["n_steps"] for row in rows if row["kind"] == "production")
    print(
        f"\n{n_labels} labels, audits included; {walked} MD steps of walkers, {produced} of "
        f"production: N_MD/N_DFT = {(walked + produced) / max(n_labels, 1):.0f}"
    )
    spent = sum(block["seconds"] for block in blocks.values())
    campaign = blocks["campaign"]["seconds"]
    print(f"Wall time {spent / 60:.0f} min, of which the campaign {campaign / 60:.0f} min")


def plot(rows: Sequence[dict[str, Any]], tolerance: float, folder: Path) -> None:
    """Write σ against true error, and the error over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    kinds = [
        ("walker", "walkers as they ran (calibrated σ)"),
        ("production", "long runs of the final model"),
    ]
    for axis, (kind, title) in zip(axes, kinds, strict=False):
        chosen = [r for r in rows if r["kind"] == kind and r.get("calibrated", True)]
        for row in chosen:
            axis.plot(
                row["sigma_eV_A"],
                row["errors"][driver(row)]["worst_eV_A"],
                ".",
                ms=3,
                alpha=0.5,
                color=plt.get_cmap("inferno")(row["temperature_K"] / 2500),
            )
        axis.axhline(tolerance, color="k", lw=0.8)
        axis.axvline(tolerance, color="k", lw=0.8)
        limits = (0.3 * tolerance, 12 * tolerance)
        axis.loglog(limits, limits, "k:", lw=0.8)
        axis.set(
            xlim=limits,
            ylim=limits,
            xlabel="calibrated σ of the worst atom (eV/Å)",
            ylabel="true error of the worst atom (eV/Å)",
            title=f"{title}\nupper left: let pass although bad",
        )
    axis = axes[2]
    for row in (r for r in rows if r["kind"] == "production"):
        for model, colour in MODELS.items():
            squares = np.array_split(row["errors"][model]["square_eV2_A2"], 3 * WINDOWS)
            times = np.array_split(0.002 * np.array(row["steps"]), 3 * WINDOWS)
            axis.plot(
                [part.mean() for part in times],
                [np.sqrt(part.mean()) for part in squares],
                color=colour,
                alpha=0.3 + 0.7 * row["temperature_K"] / 2000,
                label=f"{model}, {row['temperature_K']:g} K",
            )
    axis.axhline(0.1, color="k", lw=0.8)
    axis.set(xlabel="time (ps)", ylabel="force RMSE (eV/Å)", ylim=(0, None), title="long runs")
    axis.legend(fontsize=7)
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"alloy_oracle.{suffix}", dpi=110)
    plt.close(figure)


def main() -> None:
    """Show a folder's results so far."""
    folder = Path(sys.argv[1])
    lines = (folder / "blocks.jsonl").read_text(encoding="utf-8").splitlines()
    show({block["name"]: block for block in map(json.loads, lines)}, folder)


if __name__ == "__main__":
    main()
