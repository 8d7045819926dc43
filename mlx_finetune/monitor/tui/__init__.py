"""The monitor that fills a terminal: what a run does, read from its journal; a person comes and leaves at any time."""
