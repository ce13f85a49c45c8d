"""The entry point of the study of detectors for the command line. Free of torch."""

from retarget.audit.studies.plan import plan

__all__ = ["plan"]
