"""From a request to a run that could take its first step: admission, identity, rows, preparation."""
