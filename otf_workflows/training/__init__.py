"""Fine-tuning of a universal potential on labels, and the measurement of its errors."""

from __future__ import annotations

from otf_workflows.training.evaluate import Evaluation, evaluate
from otf_workflows.training.finetune import Finetuned, finetune

__all__ = ["Evaluation", "Finetuned", "evaluate", "finetune"]
