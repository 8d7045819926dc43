"""From files to masked tokens in fixed shapes. Never imports mlx."""
