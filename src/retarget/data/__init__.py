"""Read labelled images of any layout, for every method; studies import ``images.read`` and ``names.parse``."""
