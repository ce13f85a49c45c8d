"""The PS-KD studies, a folder each: what is run (plan), one run, its data, its scores and what the page shows."""
