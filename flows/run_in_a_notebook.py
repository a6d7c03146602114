"""A whole campaign in one Python process: no FireWorks, no DFT code, a few minutes.

Copy it into a notebook, or run it: python flows/run_in_a_notebook.py
"""

from pathlib import Path

from otf_workflows import Campaign, run_locally

campaign = Campaign.from_file(Path(__file__).parent / "si_teacher" / "campaign.yaml")
finished = run_locally(campaign, report=Path("si_teacher.html"), tell=print)
print(f"{finished.name}: {finished.state}. {finished.reason}")
