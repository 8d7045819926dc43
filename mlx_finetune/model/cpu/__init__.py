"""Forms of the same sums that a CPU computes faster."""
