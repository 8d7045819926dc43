"""``mlxft sweep``: a few short runs of one recipe with other learning rates and ranks, and which of them was best."""
