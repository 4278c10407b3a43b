"""Shared parts of all training runs: DeepSpeed engine, exact resume, loss guard, averaged weights and metrics."""
