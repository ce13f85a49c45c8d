"""The study of POPE: plan, worlds, runs and the page's figures, on a testbed of generated problems."""
