"""What ``training.report_to`` names: trackers that follow a run's journal, each in a process of its own."""
