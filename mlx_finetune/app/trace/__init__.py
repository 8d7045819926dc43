"""What changed inside a model, checkpoint by checkpoint: behaviour first, then layers, then the updates themselves."""
