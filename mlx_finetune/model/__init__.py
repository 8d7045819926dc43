"""Weights, tokenizers, adapters and generation: the only place that reaches mlx-lm."""
