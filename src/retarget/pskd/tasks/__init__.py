"""Data, model and metrics of the PS-KD studies."""
