"""Models that begin with random weights: their folder, their tokenizer, and the parts that mlx-lm does not have."""
