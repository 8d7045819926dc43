"""Many answers to each problem: drawn, checked by a rule, kept as rows for training, and compared ways to pick one."""
