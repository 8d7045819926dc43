"""The general set: a few plain paragraphs and short questions, to see what a training made a model forget."""
