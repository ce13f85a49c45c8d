"""Where PS-KD's past predictions come from: rows in a table, or the previous model.

Import ``Dense``, ``TopK``, ``MemoryMapped`` and ``PreviousModel`` from ``retarget.pskd``; ``base.Past`` is the
interface for a past of your own.
"""
