"""The study of detectors on the zoo, under the name by which the command line finds it; free of torch."""

from retarget.audit.studies.plan import plan

__all__ = ["plan"]
