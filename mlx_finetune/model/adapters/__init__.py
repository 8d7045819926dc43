"""Adapters: their layers, putting them on, their files."""
