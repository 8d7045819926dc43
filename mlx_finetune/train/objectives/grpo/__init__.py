"""Learning from the rewards of its own answers (``grpo``): groups of answers, each compared with its group's mean."""
