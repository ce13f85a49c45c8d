"""Read labelled images of any layout, for every method: ``images.read``, ``names.parse``."""
