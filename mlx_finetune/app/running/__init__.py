"""Trainings at work: started, watched, continued, asked to stop."""
