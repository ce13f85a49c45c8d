"""Measure speed and size of this package beside its peers: ``python -m benchmarks [NAME...]``.

Every module here whose name has no leading underscore is a benchmark of that name. It has a function
``figures(smallest: bool) -> Iterator[dict]``, which yields one result of :func:`benchmarks._pairs.figure` after the
other. A benchmark's own imports wait until it is asked for. ``smallest`` runs the same code in seconds, with sizes too
small for the values to mean anything, to show that the benchmark still works.
"""
