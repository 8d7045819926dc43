"""A night of several trainings: chosen and watched in a window, worked through by a process of its own."""
