"""The updates of the checkpoints of a run: read, measured, exported."""
