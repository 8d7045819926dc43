"""A look at data: reports, tokens, rows as the model sees them."""
