"""Models: what they were trained on, how wrong they are, and how well they know it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field

from otf_workflows.schemas.base import Document, now

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class ErrorStatistics(Document):
    """Errors of a model on a set of labels, at one level of theory."""

    n_frames: int = Field(description="Number of frames.")
    n_atoms: int = Field(description="Number of atoms in all.")
    force_rmse_eV_A: float = Field(description="RMSE over force components (eV/Å).")
    force_rmse_low_eV_A: float = Field(description="Lower end of its 95 % bootstrap interval.")
    force_rmse_high_eV_A: float = Field(description="Upper end of its 95 % bootstrap interval.")
    force_mae_eV_A: float = Field(description="MAE over force components (eV/Å).")
    force_slope: float = Field(description="Slope of predicted against DFT forces; 1 is right.")
    energy_mae_eV_atom: float = Field(
        description="MAE of energy per atom after removing the mean offset (eV/atom)."
    )
    stress_mae_GPa: float | None = Field(None, description="MAE of stress components (GPa).")


class Calibration(Document):
    """How the raw uncertainty becomes an honest one: σ = √((factor × raw σ)² + floor²)."""

    factor: float = Field(1.0, description="What the raw σ is multiplied by.")
    floor_eV_A: float = Field(
        0.0, description="Error that stays however small the raw σ is (eV/Å), added in squares."
    )
    nominal: float = Field(0.9, description="Share of frames meant to lie below σ.")
    n: int = Field(0, description="Labels used, none of them trained on; 0 means uncalibrated.")
    measured: float | None = Field(None, description="Coverage seen on the next fresh batch.")
    n_atoms: int | None = Field(
        None, description="Size of the cells it was measured in; none for the worst atom of any."
    )
    usual_sigma_eV_A: float | None = Field(
        None, description="Raw σ of the median label it was measured on (eV/Å); none if unknown."
    )
    multiples: dict[str, float] = Field(
        default_factory=dict,
        description="Share (%) → multiple of the calibrated σ that covered it in these labels.",
    )

    @property
    def usual_eV_A(self) -> float:
        """Honest uncertainty (eV/Å) of the median label it was measured on; 0 if unknown."""
        usual = self.usual_sigma_eV_A
        return 0.0 if usual is None else self.calibrated(usual)

    def calibrated(self, sigma_eV_A: ArrayLike) -> Any:
        """Return the honest uncertainty (eV/Å) of a raw one, a number or an array."""
        import numpy as np

        honest = np.hypot(self.factor * np.asarray(sigma_eV_A, dtype=float), self.floor_eV_A)
        return honest if honest.ndim else float(honest)

    def of_frame(self, sigmas_eV_A: ArrayLike) -> float:
        """Return the honest uncertainty of a frame (eV/Å) from the raw one of each atom, (n,).

        It means the same in cells of all sizes: that of the worst of :attr:`n_atoms` atoms, see
        :func:`~otf_workflows.uncertainty.worst_of`. So that one lost atom is not outvoted by many
        good ones, half of the worst atom of all counts as well.
        """
        from otf_workflows.uncertainty import LONE_ATOM_RATIO, worst_of

        lone = worst_of(sigmas_eV_A, None) / LONE_ATOM_RATIO
        return self.calibrated(max(worst_of(sigmas_eV_A, self.n_atoms), lone))


class Forgetting(Document):
    """How far a model went from the pretrained potential in other crystals of its elements."""

    n_frames: int = Field(description="Crystals compared, none of them trained on.")
    elements: list[str] = Field(description="Their elements.")
    force_rmse_eV_A: float = Field(description="RMS difference of force components (eV/Å).")
    force_rms_eV_A: float = Field(description="RMS force of the pretrained potential (eV/Å).")

    @property
    def sentence(self) -> str:
        """The number in words."""
        return (
            f"Elsewhere ({self.n_frames} other crystals of {', '.join(self.elements)}) its forces "
            f"differ from those of the pretrained potential by {self.force_rmse_eV_A:.3f} eV/Å, "
            f"{self.force_rmse_eV_A / max(self.force_rms_eV_A, 1e-12):.0%} of their size."
        )


class TrainingResult(Document):
    """A challenger and its evidence. Output of a finetune job."""

    model_id: str = Field(description="Id of the new model: campaign, cycle, hash of the weights.")
    parent_id: str = Field(description="Model the training started from.")
    sha256: str = Field(description="Hash of the weights.")
    blob: str = Field(description="Weights, heads and latent statistics, base64.")
    dataset_hash: str = Field(description="Data set trained on.")
    history: list[dict[str, float]] = Field(description="One entry per epoch: losses and errors.")
    alignment: dict[str, Any] = Field(description="Energy shifts per element, stress check.")
    calibration: Calibration = Field(description="Of the new model's uncertainty.")
    errors: dict[str, ErrorStatistics] = Field(
        description="'incumbent/audit', 'challenger/audit', 'pretrained/audit', 'incumbent/fresh'…"
    )
    evaluation: dict[str, Any] = Field(
        default_factory=dict, description="Arrays behind the errors, for parity plots."
    )
    fresh_coverage: dict[str, float] = Field(
        default_factory=dict, description="Coverage, Spearman, AUROC of σ on the fresh labels."
    )
    forgetting: Forgetting | None = Field(None, description="None if trained from scratch.")
    seconds: float = Field(description="Wall time (s).")
    versions: dict[str, str] = Field(default_factory=dict, description="Code versions.")


class ModelDocument(Document):
    """One model in ``otf_models``; its weights are a GridFS file named by ``sha256``."""

    model_id: str = Field(description="campaign-cycle-hash, or the registry name if pretrained.")
    campaign: str | None = Field(None, description="None for a pretrained model.")
    cycle: int | None = Field(None, description="Cycle that trained it.")
    potential: str = Field(description="Registry name of the architecture and pretraining.")
    parent_id: str | None = None
    dataset_hash: str | None = None
    sha256: str | None = Field(None, description="None for a pretrained model shipped in a wheel.")
    output_uuid: str | None = Field(None, description="jobflow job that holds the weights.")
    promoted: bool = False
    verdict: list[str] = Field(default_factory=list)
    errors: dict[str, ErrorStatistics] = Field(default_factory=dict)
    calibration: Calibration = Field(default_factory=Calibration)
    alignment: dict[str, Any] = Field(default_factory=dict)
    history: list[dict[str, float]] = Field(default_factory=list)
    training: dict[str, Any] = Field(default_factory=dict, description="Hyper-parameters.")
    fresh_coverage: dict[str, float] = Field(default_factory=dict)
    forgetting: Forgetting | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    created: datetime = Field(default_factory=now)


class DatasetDocument(Document):
    """One immutable list of labels in ``otf_datasets``."""

    hash: str
    parent_hash: str | None = None
    campaign: str
    cycle: int
    entries: list[dict[str, str]] = Field(description="{key, split} in the order of keys.")
    recipe_fingerprint: str
    created: datetime = Field(default_factory=now)
