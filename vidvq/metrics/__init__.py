"""Distances between videos and between frames, for training and for scoring."""
