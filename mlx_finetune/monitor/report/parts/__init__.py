"""The parts of a report: from the facts of a run to a piece of the page, or None where there is nothing to tell."""
