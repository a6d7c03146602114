"""OTF Workflows: on-the-fly machine-learning molecular dynamics."""

__version__ = "0.1.0"
