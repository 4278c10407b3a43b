"""Scores of a generator on held-out clips."""
