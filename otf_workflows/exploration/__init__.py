"""Molecular dynamics with a machine-learned potential: walkers that know when to stop."""

from otf_workflows.exploration.flock import Walker, explore_together
from otf_workflows.exploration.production import ProductionRun, run_production
from otf_workflows.exploration.seeds import seed_frames
from otf_workflows.exploration.trajectory import decode_trajectory, encode_trajectory
from otf_workflows.exploration.walker import explore

__all__ = [
    "ProductionRun",
    "Walker",
    "decode_trajectory",
    "encode_trajectory",
    "explore",
    "explore_together",
    "run_production",
    "seed_frames",
]
