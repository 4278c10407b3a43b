"""Metrics of reconstructions and codebook usage, for training and evaluation."""
