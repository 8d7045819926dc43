"""Optimizers behind one small protocol: pure updates of flat dictionaries of fp32 arrays."""
