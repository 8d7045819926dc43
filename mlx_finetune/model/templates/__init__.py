"""Chat templates, which come from strangers."""
