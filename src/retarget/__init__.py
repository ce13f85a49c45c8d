"""Retarget changes one thing in a training batch - the label, the prompt or the noise.

Public names are loaded on first use (PEP 562), so that importing the package costs nothing.
"""

__version__ = "0.1.0"
