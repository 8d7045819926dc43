"""Files of a model, read with bounds and written whole."""
