"""What a double-click does: the launchers on the Desktop, and the dialogues behind ``mlxft launch VERB``."""
