"""Lithium chloride with real pw.x: what a finished campaign's potential is worth on fresh MD.

    OTF_STATE_DIR=STATE python benchmarks/licl.py --out RESULTS [--campaign licl] [--frames 50]

STATE is the state folder of a campaign that ``otf run`` has finished. Its final potential runs MD
that no label is from, at each temperature of the campaign and in each of its cell shapes. Random
frames of these runs are computed with the campaign's own recipe, and compared:

- force RMSE over the trajectories, with a 95 % interval (bootstrap over frames), beside that of the
  pretrained potential and the size of the forces themselves;
- coverage: share of frames whose worst atom is off by no more than the calibrated uncertainty says;
- misses: frames that were trusted (uncertainty below the tolerance) and are worse than the
  tolerance; false alarms: frames that were not trusted and are better than it;
- MD steps that the campaign and its production made for every DFT calculation: in AIMD each step is
  one.

``--cell-shapes N`` takes the frames from so many cell shapes instead of the campaign's own, to see
what a potential trained in one shape is worth in others. ``--large N`` also computes N frames of
the campaign's production run, in its large cell.

Every label is a folder of RESULTS: a run that was killed goes on where it was. ``--table`` computes
nothing. The table is printed, and drawn into RESULTS/licl.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.campaign import Campaign, Production
from otf_workflows.schemas import Calibration, Frame, LabelResult
from otf_workflows.types import LabelState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.labelers.base import Resources
    from otf_workflows.potentials.base import Potential
    from otf_workflows.settings import Site
    from otf_workflows.store import Store

LARGE = "production cell"
N_BOOTSTRAP = 2000
SEED = 20_000
"""Of the MD; walkers and production of a campaign have small seeds of their own."""


@dataclass(frozen=True)
class Finished:
    """What is read of a finished campaign."""

    campaign: Campaign
    model_id: str
    weights: bytes | None
    calibration: Calibration
    n_labels: int
    n_md_steps: int
    core_hours: float
    large: list[Frame]


def read_campaign(site: Site, name: str, *, n_shapes: int | None, n_large: int) -> Finished:
    """Return the state of a campaign, with random frames of its production run."""
    from contextlib import nullcontext

    from otf_workflows.connection import connect
    from otf_workflows.engine.mongod import EmbeddedMongod
    from otf_workflows.store import Store

    embedded = site.database.mode == "embedded"
    mongod = EmbeddedMongod(site.resolved_state_dir, database=site.database.name)
    with mongod if embedded else nullcontext():
        store = Store(connect(site))
        document = store.campaign(name)
        model = store.model(document.incumbent_id)
        runs = store.properties(name)
        walkers = [w for cycle in store.cycles(name) for w in cycle.walkers]
        produced = sum(r.values["n_steps_run"] + r.values["audit_n_steps_run"] for r in runs)
        n_labels, core_hours = store.label_costs(name)
        return Finished(
            campaign=_in_shapes(document.campaign, n_shapes),
            model_id=model.model_id,
            weights=store.weights(model),
            calibration=document.calibration,
            n_labels=n_labels or store.label_counts(name)[LabelState.DONE],
            n_md_steps=sum(int(w["n_steps_run"]) for w in walkers) + produced,
            core_hours=core_hours,
            large=_large_frames(store, name, n_large) if n_large else [],
        )


def _in_shapes(asked: dict[str, Any], n_shapes: int | None) -> Campaign:
    """Return a campaign, in another number of cell shapes if one is given."""
    shapes = {} if n_shapes is None else {"cell_shapes": n_shapes}
    return Campaign.model_validate({**asked, "exploration": {**asked["exploration"], **shapes}})


def _large_frames(store: Store, name: str, n: int) -> list[Frame]:
    """Return random frames of the second half of a production run."""
    from otf_workflows.exploration import decode_trajectory

    runs = store.properties(name)
    preview = store.preview(runs[-1].trajectory_uuid) if runs else None
    if preview is None:
        raise SystemExit(f"campaign '{name}' has no production run to take frames from")
    frames = decode_trajectory(preview)
    chosen = np.random.default_rng(SEED).permutation(np.arange(len(frames) // 2, len(frames)))[:n]
    return [Frame.from_atoms(frames[i]) for i in sorted(chosen)]


def draw_frames(
    done: Finished, potential: Potential, *, n_frames: int, n_steps: int
) -> list[dict[str, Any]]:
    """Return random frames of fresh MD, shared out among temperatures and cell shapes."""
    from otf_workflows.exploration import run_production
    from otf_workflows.exploration.starts import shapes_of

    rules = done.campaign.exploration
    shapes, kelvins = shapes_of(done.campaign), rules.temperatures_K
    drawn = []
    for number, kelvin in enumerate(kelvins):
        run = run_production(
            done.campaign.structure,
            potential,
            rules=Production(
                temperature_K=kelvin,
                supercell=(1, 1, 1),
                # Only the audit runs are wanted, which are random frames of the labelled cells.
                steps=10,
                timestep_fs=rules.timestep_fs,
                audit_steps=n_steps,
            ),
            tolerance_eV_A=done.campaign.tolerance_eV_A,
            calibration=done.calibration,
            seed=SEED + 100 * number,
            n_audit=len(range(number, n_frames, len(kelvins))),
            audit_starts=shapes,
            friction_per_fs=rules.friction_per_fs,
            min_distance_ratio=rules.min_distance_ratio,
            max_volume_ratio=rules.max_volume_ratio,
        )
        drawn += [{"group": f"{kelvin:g} K", "frame": frame} for frame in run.candidates]
        print(f"{kelvin:g} K: {run.audit_n_steps_run} MD steps in {len(shapes)} cells", flush=True)
    for frame in done.large:
        raw = potential.predict(frame.to_atoms(), uncertainty=True).sigma_eV_A
        sigma = done.calibration.of_frame(raw)
        drawn.append({"group": LARGE, "frame": frame.model_copy(update={"sigma_eV_A": sigma})})
    return drawn


def compute(
    item: dict[str, Any], campaign: Campaign, folder: Path, resources: Resources
) -> LabelResult | None:
    """Return the label of a frame, from its folder if it is there; None if it failed."""
    from otf_workflows.errors import LabelFailed
    from otf_workflows.hashing import label_key
    from otf_workflows.labelers import get_labeler, parse_recipe

    frame, recipe = item["frame"], parse_recipe(campaign.labels)
    key = label_key(frame, recipe.fingerprint(frame.numbers))
    kept = folder / key[:16] / "result.json"
    if kept.is_file():
        return LabelResult.model_validate_json(kept.read_text())
    begun = time.monotonic()
    try:
        result = get_labeler(recipe.code).label(
            frame, recipe, key=key, directory=kept.parent, resources=resources
        )
    except LabelFailed as error:
        print(f"{item['group']}: failed, {error.what}", flush=True)
        return None
    kept.write_text(result.model_dump_json())
    print(f"{item['group']}: labelled in {time.monotonic() - begun:.0f} s", flush=True)
    return result


def compare(
    items: Sequence[dict[str, Any]],
    labels: Sequence[LabelResult | None],
    potential: Potential,
    pretrained: Potential,
) -> list[dict[str, Any]]:
    """Return one row of numbers for each labelled frame."""
    rows = []
    for item, label in zip(items, labels, strict=True):
        if label is None:
            continue
        atoms, wanted = item["frame"].to_atoms(), np.array(label.forces_eV_A)
        found = potential.predict(atoms).forces_eV_A - wanted
        before = pretrained.predict(atoms).forces_eV_A - wanted
        rows.append(
            {
                "group": item["group"],
                "n_components": wanted.size,
                "squares": float((found**2).sum()),
                "squares_pretrained": float((before**2).sum()),
                "squares_dft": float((wanted**2).sum()),
                "overlap": float(((found + wanted) * wanted).sum()),
                "worst_eV_A": float(np.linalg.norm(found, axis=1).max()),
                "sigma_eV_A": item["frame"].sigma_eV_A,
                "core_hours": label.core_hours,
            }
        )
    return rows


def figures(rows: Sequence[dict[str, Any]], tolerance_eV_A: float) -> dict[str, Any]:
    """Return the figures of a group of frames."""
    n = np.array([row["n_components"] for row in rows], dtype=float)
    worst = np.array([row["worst_eV_A"] for row in rows])
    sigma = np.array([row["sigma_eV_A"] for row in rows])
    squares = np.array([row["squares"] for row in rows])
    picks = np.random.default_rng(0).integers(len(rows), size=(N_BOOTSTRAP, len(rows)))
    spread = np.sqrt(squares[picks].sum(axis=1) / n[picks].sum(axis=1))
    total = {name: sum(row[name] for row in rows) for name in rows[0] if name.startswith("squares")}
    trusted, good = sigma <= tolerance_eV_A, worst <= tolerance_eV_A
    return {
        "frames": len(rows),
        "rmse_eV_A": float(np.sqrt(total["squares"] / n.sum())),
        "interval_eV_A": np.percentile(spread, [2.5, 97.5]).tolist(),
        "pretrained_eV_A": float(np.sqrt(total["squares_pretrained"] / n.sum())),
        "force_size_eV_A": float(np.sqrt(total["squares_dft"] / n.sum())),
        "slope": sum(row["overlap"] for row in rows) / total["squares_dft"],
        "worst_eV_A": float(worst.max()),
        "coverage": float((worst <= sigma).mean()),
        "misses": int((trusted & ~good).sum()),
        "bad": int((~good).sum()),
        "false_alarms": int((~trusted & good).sum()),
        "core_hours": sum(row["core_hours"] for row in rows),
    }


def report(rows: Sequence[dict[str, Any]], done: Finished) -> dict[str, Any]:
    """Print the table and return it."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    small = [row for row in rows if row["group"] != LARGE]
    tolerance = done.campaign.tolerance_eV_A
    parts = {group: [row for row in rows if row["group"] == group] for group in groups}
    table = {
        name: figures(part, tolerance)
        for name, part in {**parts, "labelled cells, all": small}.items()
        if part
    }
    print(
        "\n| frames of | n | force RMSE (eV/Å) | 95 % | pretrained | |F| | slope | worst atom "
        "| coverage | misses of bad | false alarms |\n" + "|---" * 11 + "|"
    )
    for name, row in table.items():
        low, high = row["interval_eV_A"]
        print(
            f"| {name} | {row['frames']} | {row['rmse_eV_A']:.4f} | {low:.4f} to {high:.4f} "
            f"| {row['pretrained_eV_A']:.3f} | {row['force_size_eV_A']:.3f} | {row['slope']:.3f} "
            f"| {row['worst_eV_A']:.3f} | {row['coverage']:.0%} | {row['misses']} of {row['bad']} "
            f"| {row['false_alarms']} |"
        )
    per_label = done.n_md_steps / done.n_labels
    print(
        f"\nModel {done.model_id}: {done.n_labels} labels in {done.core_hours:.2f} core-hours for "
        f"{done.n_md_steps} MD steps, {per_label:.0f} steps for each DFT calculation."
    )
    return {
        "model": done.model_id,
        "tolerance_eV_A": tolerance,
        "labels": done.n_labels,
        "core_hours": done.core_hours,
        "md_steps": done.n_md_steps,
        "table": table,
        "frames": list(rows),
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the true error of every frame's worst atom against what the uncertainty said."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from otf_workflows.report.svg import CYCLE_COLOURS, STYLE

    rows, tolerance = result["frames"], result["tolerance_eV_A"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5, 4.5), layout="constrained", facecolor="white")
        axes = figure.subplots()
        groups = dict.fromkeys(row["group"] for row in rows)
        for colour, group in zip(CYCLE_COLOURS, groups, strict=False):
            part = [row for row in rows if row["group"] == group]
            axes.plot(
                [row["sigma_eV_A"] for row in part],
                [row["worst_eV_A"] for row in part],
                "o",
                color=colour,
                label=group,
            )
        ends = [value for row in rows for value in (row["sigma_eV_A"], row["worst_eV_A"])]
        limits = (0.7 * min([*ends, tolerance]), 1.4 * max([*ends, tolerance]))
        axes.plot(limits, limits, color="0.5", linewidth=0.8)
        axes.axvline(tolerance, color="0.5", linestyle="--", linewidth=0.8)
        axes.axhline(tolerance, color="0.5", linestyle="--", linewidth=0.8)
        axes.set(
            xscale="log",
            yscale="log",
            xlim=limits,
            ylim=limits,
            xlabel="calibrated uncertainty (eV/Å)",
            ylabel="true error of the worst atom (eV/Å)",
            title="Below the line: covered. Upper left: missed. Lower right: false alarm.",
        )
        axes.legend()
        figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--campaign", default="licl")
    parser.add_argument("--frames", type=int, default=50, help="in all, of labelled cells")
    parser.add_argument("--steps", type=int, default=2000, help="MD steps in each cell")
    parser.add_argument("--cell-shapes", type=int, help="instead of the campaign's own number")
    parser.add_argument("--large", type=int, default=0, help="frames of the production run")
    parser.add_argument("--workers", type=int, default=1, help="labels at once")
    parser.add_argument("--table", action="store_true", help="only the table and the plot")
    args = parser.parse_args()
    import torch

    from otf_workflows.potentials import load_potential
    from otf_workflows.settings import load_site

    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.table:
        result = json.loads((args.out / "licl.json").read_text())
        plot(result, args.out / "licl.svg")
        print(json.dumps(result["table"], indent=2))
        return
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", flush=True)
    site = load_site()
    done = read_campaign(site, args.campaign, n_shapes=args.cell_shapes, n_large=args.large)
    potential = load_potential(done.campaign.potential, done.weights)
    kept = args.out / "frames.json"
    if kept.is_file():
        saved = json.loads(kept.read_text())
        items = [{**item, "frame": Frame.model_validate(item["frame"])} for item in saved]
    else:
        items = draw_frames(done, potential, n_frames=args.frames, n_steps=args.steps)
        plain = [{**item, "frame": item["frame"].model_dump(mode="json")} for item in items]
        kept.write_text(json.dumps(plain))
    resources = site.resources(done.campaign.labels["code"])
    with ThreadPoolExecutor(args.workers) as pool:
        labels = list(
            pool.map(lambda item: compute(item, done.campaign, args.out, resources), items)
        )
    rows = compare(items, labels, potential, load_potential(done.campaign.potential))
    result = report(rows, done)
    (args.out / "licl.json").write_text(json.dumps(result, indent=1))
    plot(result, args.out / "licl.svg")
    print(f"{len(labels) - len(rows)} labels failed; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
