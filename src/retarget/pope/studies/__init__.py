"""POPE's studies: plans, worlds, runs and the figures of their pages, on a testbed of generated problems."""
