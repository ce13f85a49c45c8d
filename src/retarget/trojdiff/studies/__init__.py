"""The TrojDiff study: plan, run, analysis. Import ``plan`` from ``retarget.trojdiff.study``."""
