"""Data, model and metrics of the TrojDiff studies."""
