"""Retarget changes one thing in a training batch - the label, the prompt or the noise.

Each method has its own package, ``retarget.pskd``, ``retarget.pope``, ``retarget.trojdiff``, whose public names are
loaded on first use (PEP 562): importing them costs nothing.
"""

__version__ = "0.2.0"
