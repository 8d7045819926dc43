"""Answers: tokens drawn one after another, where they end, what holds them to a schema."""
