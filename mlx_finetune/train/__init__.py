"""Losses, the optimizer step, the loop and its checkpoints."""
