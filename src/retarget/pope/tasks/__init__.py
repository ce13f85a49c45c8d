"""Data, model and metrics of the POPE studies."""
