"""Every checkpoint of a run, and what it began as, measured on the same rows: loss, perplexity, bits per byte."""
