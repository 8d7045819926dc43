"""Inside a model of mlx-lm: its parts, and what is put in their place while it trains."""
