"""Readers of events.jsonl that show a run. Sees layers 0 and 1 only."""
