"""A conversation with a model, line by line, and what a person may do to it."""
