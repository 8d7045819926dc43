"""What every server of ours shares that listens on this machine: who may ask, how much, how slowly, and its end."""
