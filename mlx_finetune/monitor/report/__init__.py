"""The report of a run: one HTML file that needs nothing else, made from its folder alone."""
