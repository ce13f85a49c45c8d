"""Speed and size of this package beside its peers, measured: ``python -m benchmarks [NAME...]``.

Every module here whose name has no leading underscore is a benchmark, known by that name. It exposes
``figures(smallest: bool) -> Iterator[dict]``, which yields what :func:`benchmarks._pairs.figure` makes, one figure
after the other; nothing heavy is imported before the module itself is asked for. ``smallest`` runs the same code in
seconds, with sizes too small for the values to mean anything: it shows that the benchmark still works.
"""
