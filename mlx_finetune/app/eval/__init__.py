"""Evaluation: what is measured on held-out rows, what it says, and how results are kept and compared."""
