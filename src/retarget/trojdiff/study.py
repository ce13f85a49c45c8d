"""The TrojDiff study's plan, where the command line looks for it. Does not import torch."""

from retarget.trojdiff.studies.plan import plan

__all__ = ["plan"]
