"""Arms × conditions × seeds, resumable; knows no method."""
