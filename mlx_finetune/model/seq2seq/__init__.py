"""Encoder-decoder models, which mlx-lm does not have: T5 and FLAN-T5."""
