"""Arms × conditions × seeds, resumable; knows no method.

A map: ``config`` is a study as data. ``runner`` does a study: ``directory`` opens its directory, ``executor`` hands
jobs to ``worker`` processes, ``progress`` shows them. ``record`` is one run while it is written and a study when it is
read; ``files`` writes whole files and holds locks; ``environment`` says where it ran. ``statistics`` and ``claims``
judge, ``summary`` puts it together.
"""
