"""Retarget changes one thing in a training batch - the label, the prompt or the noise.

Each method has its own package, ``retarget.pskd``, ``retarget.pope``, ``retarget.trojdiff``; import from it what its
``__all__`` lists. Names are loaded on first use (PEP 562), so importing a package costs nothing.
"""

__version__ = "0.2.0"
