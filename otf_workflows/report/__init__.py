"""One self-contained HTML page about a campaign: no script, nothing loaded from outside."""

from otf_workflows.report.data import report_data
from otf_workflows.report.model import ReportData
from otf_workflows.report.page import render, write_report

__all__ = ["ReportData", "render", "report_data", "write_report"]
