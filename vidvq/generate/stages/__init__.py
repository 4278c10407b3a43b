"""Corpus jobs of `vidvq generate`."""
