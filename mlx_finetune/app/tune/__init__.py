"""``mlxft tune``: measures settings in child processes and keeps the fastest safe ones for this machine."""
