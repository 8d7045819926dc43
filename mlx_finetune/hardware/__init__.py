"""What this machine is and how it is set up before mlx starts."""
