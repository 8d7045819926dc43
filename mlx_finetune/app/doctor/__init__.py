"""What is missing or wrong on this machine, the command that mends it, and a report of it that others may read."""
