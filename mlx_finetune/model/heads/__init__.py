"""Heads that give numbers instead of tokens: scores of a state, for classes, rewards and verdicts."""
