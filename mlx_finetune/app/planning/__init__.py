"""A plan: what a recipe costs, and what would make it fit."""
