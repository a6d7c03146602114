"""Properties from trajectories, each with its error bar."""

from otf_workflows.analysis.blocks import block_mean
from otf_workflows.analysis.diffusion import mean_square_displacement
from otf_workflows.analysis.structure import radial_distribution

__all__ = ["block_mean", "mean_square_displacement", "radial_distribution"]
