"""Where a model comes from: its name, the hub, a wheel, this disk."""
