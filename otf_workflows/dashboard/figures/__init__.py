"""Figures as data for Plotly, each with the same numbers as a table for those without a plot."""

from otf_workflows.dashboard.figures.base import Figure, Table

__all__ = ["Figure", "Table"]
