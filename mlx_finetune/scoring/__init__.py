"""Scores of answers and what they prove: text and numbers only, without a model and without mlx."""
