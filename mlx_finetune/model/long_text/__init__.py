"""Texts longer than the context a model was trained on: a window of keys, attention sinks, and how to read along."""
