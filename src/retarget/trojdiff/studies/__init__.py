"""The TrojDiff study: its plan, its runs, its page."""
