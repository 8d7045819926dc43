"""What is kept of a run so that it can go on: the folders, their contents, the state, room on the disk."""
