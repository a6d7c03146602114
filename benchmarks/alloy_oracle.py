"""A whole campaign in a hot alloy whose truth is known at every frame: what was let pass, and why.

Run it as ``python benchmarks/alloy_oracle.py --oracle MoTaNbTi.mtp --folder proof``. The truth is a
moment tensor potential that others fitted to DFT of Mo-Ta-Nb-Ti (Zheng et al., npj Comput. Mater.
9, 89, 2023), read by motep (``pip install motep==0.2.0``). It takes the place of DFT in an ordinary
campaign: CHGNet drives walkers in a small cell from 300 to 2000 K, uncertain frames are
labelled, the model learns. Because the oracle is cheap, every frame that was kept or proposed is
computed afterwards, and errors are known where the campaign could only estimate them.

Controls, on the same frames: the pretrained model, and a model trained on as many labels of
randomly timed frames of its MD. Frames of the oracle's own MD belong to none of the three.

Every part is a line in ``blocks.jsonl``; run again, the program goes on where it was stopped.
Half an hour to two hours on one core. Tables are printed by ``alloy_tables.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from alloy_tables import show

from otf_workflows.campaign import (
    Budget,
    Campaign,
    Exploration,
    Production,
    Seeding,
    SelectionRules,
    TrainingRules,
)
from otf_workflows.connection import connect, job_store
from otf_workflows.engine.mongod import EmbeddedMongod
from otf_workflows.engine.worker import set_threads
from otf_workflows.exploration import run_production
from otf_workflows.exploration.dynamics import Dynamics, Ensemble, first_checkpoint
from otf_workflows.exploration.trajectory import decode_trajectory
from otf_workflows.local_run import run_locally
from otf_workflows.potentials import load_potential
from otf_workflows.schemas import Calibration, Frame, LabelledFrame
from otf_workflows.settings import SITE_FILE_VARIABLE, load_site
from otf_workflows.store import Store
from otf_workflows.training import finetune
from otf_workflows.types import Split
from otf_workflows.uncertainty import worst_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from otf_workflows.potentials.base import Potential

NAME = "alloy"
PRETRAINED = "chgnet-0.3.0"
SPECIES = [73, 22, 41, 42]
"""Ta, Ti, Nb, Mo: the order of types in the published file."""
LATTICE_A = 3.27
"""Between the oracle's and CHGNet's equilibrium at 0 K (3.25 Å) and that of the hot alloy."""
PRODUCTION_K = 1200
MOST_JUDGED = 700
"""Frames of a production run whose truth is computed, evenly spaced."""


def oracle(file: str) -> Calculator:
    """Return the published potential as an ASE calculator; the campaign's recipe names this."""
    from motep.calculator import make_calculator
    from motep.io.mlip.mtp import read_mtp

    data = read_mtp(file)
    data.species = SPECIES
    return make_calculator(data)


def alloy(repeats: Sequence[int]) -> Atoms:
    """Return a random equiatomic bcc supercell of the cubic cell of two atoms."""
    from ase.build import bulk

    atoms = bulk("Mo", "bcc", a=LATTICE_A, cubic=True).repeat(tuple(repeats))
    atoms.numbers = np.random.default_rng(1).permutation(np.resize(SPECIES, len(atoms)))
    return atoms


def campaign(options: argparse.Namespace) -> Campaign:
    """Return the campaign that is proved."""
    return Campaign(
        name=NAME,
        structure=Frame.from_atoms(alloy(options.cell)),
        potential=PRETRAINED,
        tolerance_eV_A=options.tolerance,
        seed=options.seed,
        labels={
            "code": "ase",
            "calculator": "alloy_oracle.oracle",
            "kwargs": {"file": str(options.oracle.resolve())},
            "level": "mtp:MoTaNbTi-2023",
        },
        # The first calibration needs some ten labels: a factor from four ends every walker at once.
        seeding=Seeding(n_frames=12),
        exploration=Exploration(
            temperatures_K=options.temperatures, steps_per_cycle=options.steps, timestep_fs=2.0
        ),
        selection=SelectionRules(labels_per_cycle=options.labels, audit_per_cycle=6, min_labels=4),
        training=TrainingRules(epochs=options.epochs),
        budget=Budget(max_cycles=options.cycles, max_labels=150),
        production=Production(
            temperature_K=PRODUCTION_K,
            supercell=(1, 1, 1),
            steps=options.production,
            sample_every=20,
            audit_steps=0,
            audit_labels=0,
        ),
    )


class Blocks:
    """Results on disk, one line for each part; what is there is not computed again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.found = {block["name"]: block for block in map(json.loads, lines)}

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a part, computed now if it is new."""
        if name not in self.found:
            begun = time.perf_counter()
            block = {"name": name, **make(), "seconds": time.perf_counter() - begun}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(block) + "\n")
            self.found[name] = block
            print(f"[{time.strftime('%H:%M:%S')}] {name}: {block['seconds']:.0f} s", flush=True)
        return self.found[name]


@dataclass
class Judge:
    """Compares models with the oracle, frame by frame.

    In cells larger than those labelled, the worst atom is the expected worst of as many atoms:
    this is what σ is calibrated for.
    """

    file: Path
    n_atoms: int

    def worst(self, vectors: np.ndarray) -> float:
        """Return the largest length of a vector (n, 3), brought to the size of labelled cells."""
        return worst_of(np.linalg.norm(vectors, axis=1), self.n_atoms)

    def truth(self, frames: Sequence[Atoms]) -> list[np.ndarray]:
        """Return the oracle's forces (eV/Å) of each frame."""
        calculator = oracle(str(self.file))
        return [calculator.get_forces(atoms) for atoms in frames]

    def compare(self, frames: Sequence[Atoms], models: dict[str, Potential]) -> dict[str, Any]:
        r"""Return worst \|ΔF\| of an atom and mean square ΔF of each frame, for each model."""
        truth = self.truth(frames)
        errors: dict[str, Any] = {}
        for name, model in models.items():
            found = [
                p.forces_eV_A - f for p, f in zip(model.predict_many(frames), truth, strict=True)
            ]
            errors[name] = {
                "worst_eV_A": [self.worst(d) for d in found],
                "square_eV2_A2": [float((d**2).mean()) for d in found],
            }
        return {
            "errors": errors,
            "worst_force_eV_A": [self.worst(f) for f in truth],
            "square_force_eV2_A2": [float((f**2).mean()) for f in truth],
        }

    def label(self, atoms: Atoms, *, key: str, split: Split) -> LabelledFrame:
        """Return a label."""
        image = atoms.copy()
        image.calc = oracle(str(self.file))
        return LabelledFrame(
            key=key,
            split=split,
            cycle=0,
            frame=Frame.from_atoms(image),
            energy_eV=image.get_potential_energy(),
            forces_eV_A=image.get_forces().tolist(),
            stress_eV_A3=image.get_stress(voigt=False).tolist(),
        )


def md_frames(
    potential: Any, atoms: Atoms, *, temperature_K: float, steps: Sequence[int], seed: int
) -> list[Atoms]:
    """Return the frames at given steps of an MD run from the crystal."""
    start = first_checkpoint(atoms, temperature_K=temperature_K, seed=(seed, int(temperature_K)))
    ensemble = Ensemble(temperature_K=temperature_K, timestep_fs=2.0, friction_per_fs=0.01)
    dynamics = Dynamics(start, potential, ensemble)
    frames = []
    for step in steps:
        while dynamics.step_count < step:
            dynamics.advance()
        frames.append(dynamics.structure())
    return frames


@dataclass
class OracleDriver:
    """The oracle in the place of a potential that drives MD."""

    file: Path

    def calculator(self) -> Calculator:
        """Return the calculator."""
        return oracle(str(self.file))


def checked_frames(segment: Any) -> tuple[list[Atoms], list[float]]:
    """Return the frames of a walker at which σ was read, as far as they were kept, and that σ.

    Trusted frames are all there, so that no miss is overlooked; of frames beyond the last trusted
    one there are those that were proposed for labels.
    """
    sigmas = dict(zip(segment.steps, segment.sigmas_eV_A, strict=True))
    met: dict[int, tuple[Atoms, float]] = {}
    for frame in [*segment.pool, *segment.candidates]:
        met[frame.origin.step] = (frame.to_atoms(), frame.sigma_eV_A)
    for atoms in decode_trajectory(segment.blob["trajectory"]):
        step = atoms.info["step"]
        if step in sigmas:
            met[step] = (atoms, sigmas[step])
    steps = sorted(met)
    frames = [met[step][0] for step in steps]
    for step, atoms in zip(steps, frames, strict=True):
        atoms.info["step"] = step
    return frames, [met[step][1] for step in steps]


def random_model(
    judge: Judge, options: argparse.Namespace, n_labels: int, folder: Path
) -> Potential:
    """Return the control: trained on randomly timed frames of the pretrained model's MD."""
    saved = folder / "random_model.bin"
    pretrained = load_potential(PRETRAINED)
    if not saved.exists():
        rng = np.random.default_rng([options.seed, 77])
        labels = []
        shares = np.array_split(np.arange(n_labels), len(options.temperatures))
        for share, kelvins in zip(shares, options.temperatures, strict=True):
            steps = np.sort(rng.choice(np.arange(50, options.steps), len(share), replace=False))
            frames = md_frames(
                pretrained,
                alloy(options.cell),
                temperature_K=kelvins,
                steps=steps.tolist(),
                seed=5,
            )
            for number, atoms in zip(share.tolist(), frames, strict=True):
                split = Split.VALIDATION if number % 7 == 6 else Split.TRAIN
                labels.append(judge.label(atoms, key=f"random-{number}", split=split))
        rules = TrainingRules(epochs=options.epochs)
        tuned = finetune(pretrained, labels, rules=rules, seed=options.seed)
        print(*tuned.sentences, flush=True)
        saved.write_bytes(tuned.potential.dump())
    return load_potential(PRETRAINED, saved.read_bytes())


@dataclass
class Proof:
    """The campaign that was run, and the truth of its frames."""

    options: argparse.Namespace
    folder: Path
    blocks: Blocks
    judge: Judge
    store: Store
    outputs: Any

    def measure(self) -> None:
        """Compute the truth of all frames, in order of importance."""
        self.outputs.connect()
        facts = self.blocks.get("cycles", self.facts)
        self.calibration = Calibration.model_validate(facts["final_calibration"])
        self.final = self.model(facts["final"])
        self.models = {
            "final": self.final,
            "pretrained": load_potential(PRETRAINED),
            "random": random_model(self.judge, self.options, facts["n_labels"], self.folder),
        }
        for made, segment in self.segments():
            name = f"walker {segment.walker} of cycle {made.cycle}"
            self.blocks.get(name, lambda m=made, s=segment: self.walker(m, s))
        for made in self.store.cycles(NAME):
            if made.kind == "production":
                uuid = made.outputs["produce"]
                name = f"production {PRODUCTION_K} K"
                self.blocks.get(name, lambda u=uuid: self.long_run(self.output(u)))
        for kelvins in self.options.temperatures:
            self.blocks.get(f"oracle MD {kelvins:g} K", lambda k=kelvins: self.neutral(k))
        self.blocks.get("oracle MD 1200 K, 8 x cell", self.larger)
        for kelvins in (2000.0, 300.0):
            self.blocks.get(f"production {kelvins:g} K", lambda k=kelvins: self.further(k))

    def facts(self) -> dict[str, Any]:
        """Return what the database says of the cycles."""
        document = self.store.campaign(NAME)
        return {
            "cycles": [
                {
                    "cycle": c.cycle,
                    "kind": c.kind,
                    "driver": c.incumbent_id,
                    "calibration": c.calibration.model_dump(),
                    "labels": len(c.selection.keys) if c.selection else 0,
                    "promoted": bool(c.verdict and c.verdict.promoted),
                    "sentences": c.verdict.sentences if c.verdict else [],
                    "fresh_coverage": c.fresh_coverage,
                    "stops": [w["stop_message"] or str(w["stop_reason"]) for w in c.walkers],
                    "steps_run": [w["n_steps_run"] for w in c.walkers],
                    "steps_kept": [w["n_steps"] for w in c.walkers],
                }
                for c in self.store.cycles(NAME)
            ],
            "n_labels": sum(self.store.label_counts(NAME).values()),
            "tolerance_eV_A": self.options.tolerance,
            "final": document.incumbent_id,
            "final_calibration": document.calibration.model_dump(),
        }

    def model(self, model_id: str) -> Potential:
        """Return a model of the campaign."""
        return load_potential(PRETRAINED, self.store.weights(self.store.model(model_id)))

    def output(self, uuid: str) -> Any:
        """Return the output of a job."""
        from jobflow import OutputReference

        return OutputReference(uuid).resolve(self.outputs)

    def segments(self) -> Iterator[tuple[Any, Any]]:
        """Yield cycle and segment of every walker."""
        for made in self.store.cycles(NAME):
            for name in sorted(n for n in made.outputs if n.startswith("explore/")):
                yield made, self.output(made.outputs[name])

    def walker(self, made: Any, segment: Any) -> dict[str, Any]:
        """Return the truth of what a walker kept or proposed."""
        frames, sigmas = checked_frames(segment)
        driven = {"driver": self.model(segment.model_id), **self.models}
        return {
            **describe("walker", frames, sigmas, segment.temperature_K),
            "cycle": made.cycle,
            "calibrated": made.calibration.n > 0,
            **self.judge.compare(frames, driven),
        }

    def long_run(self, run: Any) -> dict[str, Any]:
        """Return the truth of a production run."""
        sigmas = dict(zip(run.steps, run.sigmas_eV_A, strict=True))
        frames = [a for a in decode_trajectory(run.blob["trajectory"]) if a.info["step"] in sigmas]
        frames = frames[:: -(-len(frames) // MOST_JUDGED)]
        read = [sigmas[atoms.info["step"]] for atoms in frames]
        return {
            **describe("production", frames, read, run.temperature_K),
            "n_steps": run.n_steps_run,
            "stop": run.stop_message or str(run.stop_reason),
            **self.judge.compare(frames, self.models),
        }

    def further(self, kelvins: float) -> dict[str, Any]:
        """Run the final model at another temperature and return the truth."""
        rules = Production(
            temperature_K=kelvins, supercell=(1, 1, 1), steps=self.options.long, sample_every=20
        )
        run = run_production(
            Frame.from_atoms(alloy(self.options.cell)),
            self.final,
            rules=rules,
            tolerance_eV_A=self.options.tolerance,
            calibration=self.calibration,
            seed=self.options.seed + int(kelvins),
            n_audit=0,
            scratch=self.folder / f"long-{kelvins:g}",
        )
        return self.long_run(run)

    def neutral(self, kelvins: float, *, times: int = 1, n_frames: int = 100) -> dict[str, Any]:
        """Return errors on the oracle's own MD."""
        steps = (np.arange(n_frames) * 20 + 500).tolist()
        cell = [times * n for n in self.options.cell]
        frames = md_frames(
            OracleDriver(self.judge.file), alloy(cell), temperature_K=kelvins, steps=steps, seed=9
        )
        found = self.final.predict_many(frames, uncertainty=True)
        sigmas = [self.calibration.of_frame(p.sigma_eV_A) for p in found]
        return {
            **describe("neutral" if times == 1 else "larger", frames, sigmas, kelvins),
            **self.judge.compare(frames, self.models),
        }

    def larger(self) -> dict[str, Any]:
        """Return errors in a cell of eight times the size."""
        return self.neutral(1200.0, times=2, n_frames=10)


def describe(
    kind: str, frames: Sequence[Atoms], sigmas: Sequence[float], kelvins: float
) -> dict[str, Any]:
    """Return what is known of frames without the oracle."""
    return {
        "kind": kind,
        "temperature_K": kelvins,
        "n_atoms": len(frames[0]) if frames else 0,
        "steps": [int(atoms.info.get("step", i)) for i, atoms in enumerate(frames)],
        "sigma_eV_A": list(sigmas),
    }


def main() -> None:
    """Run what is not done yet, and print the tables."""
    options = parse()
    set_threads(1)
    import torch

    torch.set_num_threads(1)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    site_file = folder / "site.yaml"
    site_file.write_text(json.dumps({"state_dir": str(folder / "state")}), encoding="utf-8")
    os.environ[SITE_FILE_VARIABLE] = str(site_file)
    blocks = Blocks(folder / "blocks.jsonl")

    def run_campaign() -> dict[str, Any]:
        document = run_locally(
            campaign(options),
            report=folder / "report.html",
            tell=lambda said: print(f"[{time.strftime('%H:%M:%S')}] {said}", flush=True),
        )
        return {"state": str(document.state), "reason": document.reason, "totals": document.totals}

    blocks.get("campaign", run_campaign)
    site = load_site()
    with EmbeddedMongod(site.resolved_state_dir, database=site.database.name):
        judge = Judge(options.oracle.resolve(), n_atoms=len(alloy(options.cell)))
        store = Store(connect(site))
        Proof(options, folder, blocks, judge, store, job_store(site)).measure()
    show(blocks.found, folder)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--oracle", type=Path, required=True, help="the published .mtp file")
    parser.add_argument("--folder", type=Path, required=True, help="results and database")
    parser.add_argument("--cell", type=int, nargs=3, default=[2, 2, 2], help="bcc cells of 2 atoms")
    parser.add_argument("--tolerance", type=float, default=0.3, help="eV/Å, of the worst atom")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[300.0, 800.0, 1400.0, 2000.0], help="K"
    )
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--labels", type=int, default=10, help="training labels in a cycle")
    parser.add_argument("--steps", type=int, default=1000, help="MD steps of a walker in a cycle")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--production", type=int, default=20_000, help="MD steps at 1200 K")
    parser.add_argument("--long", type=int, default=10_000, help="MD steps at 2000 and at 300 K")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
