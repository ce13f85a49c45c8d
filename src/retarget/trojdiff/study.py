"""The TrojDiff study, under the name by which the command line finds it; free of torch."""

from retarget.trojdiff.studies.plan import plan

__all__ = ["plan"]
