"""What was measured about the models: errors, parity, uncertainty, with the labels behind them."""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from otf_workflows.report.model import Coverage, HeadlineErrors, ParityTable, UncertaintyPoint
from otf_workflows.report.words import count
from otf_workflows.types import Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otf_workflows.schemas import (
        Calibration,
        CampaignDocument,
        CycleDocument,
        ErrorStatistics,
        LabelDocument,
        ModelDocument,
    )
    from otf_workflows.store import Store

NOMINAL = 0.9
"""Coverage that calibration aims at, where a model does not say."""
MIN_RANKED = 5
"""A rank correlation of fewer frames says nothing."""


class Evidence:
    """Evaluations of a campaign, read from the store when they are needed.

    After production, all models were measured once more on all audit labels; before that, the
    evaluation of the newest finished cycle counts.
    """

    def __init__(
        self,
        store: Store,
        document: CampaignDocument,
        cycles: Sequence[CycleDocument],
        models: Sequence[ModelDocument],
        labels: Sequence[LabelDocument],
    ) -> None:
        self._store = store
        self._document = document
        self._cycles = cycles
        self._models = {model.model_id: model for model in models}
        self._labels = {label.key: label for label in labels}
        self.pretrained: str = document.campaign["potential"]
        self.final: str = document.incumbent_id

    @cached_property
    def judged(self) -> CycleDocument | None:
        """The newest cycle in which models were compared on audit labels."""
        compared = [c for c in self._cycles if c.kind == "cycle" and c.verdict and c.challenger_id]
        return compared[-1] if compared else None

    @cached_property
    def concluded(self) -> CycleDocument | None:
        """The production run, once all models were measured on its labels."""
        return next(
            (
                c
                for c in self._cycles
                if c.kind == "production" and f"{self.final}/audit" in c.errors
            ),
            None,
        )

    def statistics(self, model_id: str) -> ErrorStatistics | None:
        """Return the errors of the pretrained or the final model on the newest audit set."""
        if self.concluded:
            return self.concluded.errors.get(f"{model_id}/audit")
        if self.judged is None:
            return None
        return self.judged.errors.get(f"{self._role(self.judged, model_id)}/audit")

    def production_statistics(self) -> ErrorStatistics | None:
        """Return the errors of the final model on labels of the production run only."""
        return self.concluded.errors.get(f"{self.final}/production") if self.concluded else None

    def headline(self) -> HeadlineErrors:
        """Return the errors before and after on the same labels."""
        final = self.statistics(self.final)
        if final is None:
            return HeadlineErrors(where="No audit label has been compared with a model yet.")
        frames = count(final.n_frames, "audit label")
        where = (
            f"{frames}, those of the production run included"
            if self.concluded
            else f"{frames} of the cycles so far"
        )
        return HeadlineErrors(
            where=where,
            pretrained=self.statistics(self.pretrained),
            final=final,
            n_trained_on=len(self._trained_on() & self._audit_keys()),
        )

    def parity(self, model_id: str) -> ParityTable | None:
        """Return DFT and prediction of a model on the labels of the headline."""
        arrays = self._arrays(model_id)
        if not arrays or not arrays.get("force_dft"):
            return None
        return ParityTable(
            model_id=model_id,
            keys=arrays["keys"],
            forces_dft_eV_A=arrays["force_dft"],
            forces_predicted_eV_A=arrays["force_predicted"],
            energies_dft_eV_atom=arrays["energy_dft_eV_atom"],
            energies_predicted_eV_atom=arrays["energy_predicted_eV_atom"],
        )

    def errors_by_element(self) -> dict[str, tuple[float, float]]:
        """Return the force RMSE (eV/Å) before and after for each element."""
        before, after = self._squares(self.pretrained), self._squares(self.final)
        return {
            symbol: (_root_mean(before[symbol]), _root_mean(after[symbol]))
            for symbol in sorted(before.keys() & after.keys())
        }

    def uncertainty(self) -> list[UncertaintyPoint]:
        """Return σ and true error of the worst atom, only of frames the model had not seen."""
        return [point for _, points in self._unseen for point in points]

    @cached_property
    def _unseen(self) -> list[tuple[Calibration, list[UncertaintyPoint]]]:
        """The same by cycle, each with the calibration its σ was read with at the time."""
        found = []
        for cycle in self._cycles:
            if cycle.challenger_id:
                table = self._file(f"evaluation/{cycle.challenger_id}").get("incumbent/fresh")
                found.append((cycle.calibration, self._points(table, cycle)))
        if self.concluded:
            fresh = {
                key
                for key, label in self._labels.items()
                if self._store.purpose_of(label, self._document.name)[1] == self.concluded.cycle
            }
            points = self._points(self._arrays(self.final), self.concluded, only=fresh)
            found.append((self.concluded.calibration, points))
        return found

    def coverage(self) -> Coverage | None:
        """Return how honest the calibrated uncertainty was; None if nothing tested it."""
        from otf_workflows.honesty import auroc_worst, spearman, wilson_interval

        points = [point for point in self.uncertainty() if point.calibrated]
        if not points:
            return None
        sigma, error, force = (
            np.array([getattr(p, name) for p in points])
            for name in ("sigma_eV_A", "error_eV_A", "force_eV_A")
        )
        covered = int((error <= sigma).sum())
        low, high = wilson_interval(covered, len(points))
        final = self._models.get(self.final)
        return Coverage(
            n=len(points),
            nominal=final.calibration.nominal if final else NOMINAL,
            measured=covered / len(points),
            low=low,
            high=high,
            spearman=spearman(error, sigma) if len(points) >= MIN_RANKED else None,
            spearman_force=spearman(error, force) if len(points) >= MIN_RANKED else None,
            auroc=auroc_worst(error, sigma) if len(points) >= MIN_RANKED else None,
            auroc_force=auroc_worst(error, force) if len(points) >= MIN_RANKED else None,
            levels=self._levels(),
        )

    def _levels(self) -> dict[str, float]:
        """Return the share of errors below each multiple of σ, all calibrated cycles together."""
        from otf_workflows.honesty import reliability

        total, covered = 0, defaultdict[str, float](float)
        for calibration, points in self._unseen:
            if not calibration.n or not points:
                continue
            # The points are calibrated already.
            honest = calibration.model_copy(update={"factor": 1.0, "floor_eV_A": 0.0})
            errors, sigmas = [p.error_eV_A for p in points], [p.sigma_eV_A for p in points]
            total += len(points)
            for level, share in reliability(errors, sigmas, honest).items():
                covered[level] += share * len(points)
        return {level: part / total for level, part in covered.items()}

    def _points(
        self,
        table: dict[str, Any] | None,
        cycle: CycleDocument,
        *,
        only: set[str] | None = None,
    ) -> list[UncertaintyPoint]:
        return list(
            worst_atoms(
                table or {},
                cycle=cycle.cycle,
                calibration=cycle.calibration,
                production=only is not None,
                only=only,
            ).values()
        )

    def _squares(self, model_id: str) -> dict[str, list[float]]:
        """Return squared errors of force components, per element."""
        arrays = self._arrays(model_id) or {"keys": [], "force_dft": [], "force_predicted": []}
        found: dict[str, list[float]] = defaultdict(list)
        for key, dft, predicted in zip(
            arrays["keys"], arrays["force_dft"], arrays["force_predicted"], strict=True
        ):
            label = self._labels.get(key)
            if label is None:
                continue
            symbols = label.frame.to_atoms().get_chemical_symbols()
            squares = (np.array(predicted) - np.array(dft)) ** 2
            for symbol, row in zip(symbols, squares.tolist(), strict=True):
                found[symbol] += row
        return found

    def _arrays(self, model_id: str) -> dict[str, Any] | None:
        """Return the arrays behind :meth:`statistics`."""
        if self.concluded:
            return self._file(f"evaluation/{self._document.name}/final").get(model_id)
        if self.judged is None:
            return None
        tables = self._file(f"evaluation/{self.judged.challenger_id}")
        return tables.get(f"{self._role(self.judged, model_id)}/audit")

    def _role(self, cycle: CycleDocument, model_id: str) -> str:
        """Return as what a model took part in the comparison of a cycle."""
        if model_id == cycle.challenger_id:
            return "challenger"
        return "pretrained" if model_id == self.pretrained else "incumbent"

    def _trained_on(self) -> set[str]:
        model = self._models.get(self.final)
        if model is None or model.dataset_hash is None:
            return set()
        entries = self._store.dataset(self._document.name, model.dataset_hash).entries
        return {entry["key"] for entry in entries if entry["split"] != Split.AUDIT}

    def _audit_keys(self) -> set[str]:
        arrays = self._arrays(self.final)
        return set(arrays["keys"]) if arrays else set()

    def _file(self, name: str) -> dict[str, Any]:
        if name not in self._files:
            content = self._store.get_file(name)
            self._files[name] = json.loads(content) if content else {}
        return self._files[name]

    @cached_property
    def _files(self) -> dict[str, dict[str, Any]]:
        return {}


def worst_atoms(
    table: dict[str, Any],
    *,
    cycle: int,
    calibration: Calibration,
    production: bool = False,
    only: set[str] | None = None,
) -> dict[str, UncertaintyPoint]:
    """Return σ, true error and |F| of the worst atom of each frame, by the key of its label.

    Parameters
    ----------
    table
        ``Evaluation.arrays`` of one model; without uncertainties there are no points.
    cycle, production
        Copied into the points.
    calibration
        Of the model.
    only
        Keys of the labels wanted; all if not given.
    """
    if not table.get("worst_sigma_eV_A"):
        return {}
    rows = zip(
        table["keys"],
        table["worst_sigma_eV_A"],
        table["worst_error_eV_A"],
        table["force_predicted"],
        strict=True,
    )
    return {
        key: UncertaintyPoint(
            cycle=cycle,
            calibrated=calibration.n > 0,
            sigma_eV_A=calibration.calibrated(sigma),
            error_eV_A=error,
            force_eV_A=float(np.linalg.norm(np.array(forces), axis=1).max()),
            production=production,
        )
        for key, sigma, error, forces in rows
        if sigma is not None and (only is None or key in only)
    }


def _root_mean(squares: list[float]) -> float:
    return float(np.sqrt(np.mean(squares)))
