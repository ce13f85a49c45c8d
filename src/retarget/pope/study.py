"""POPE's study, as the command line finds it. It is described in studies/plan.py and run by studies/run.py."""

from retarget.pope.studies.plan import PRESETS, Settings, plan

__all__ = ["PRESETS", "Settings", "plan"]
