"""Pipelines: stages that name recipes, each of which may start from the result of an earlier one."""
