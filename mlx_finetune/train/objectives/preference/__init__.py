"""Learning from preferences: pairs of a chosen and a rejected answer, or single answers marked good or bad."""
