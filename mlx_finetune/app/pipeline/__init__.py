"""Pipelines at work: which stages are done, running the others, what they will cost."""
