"""What every training run shares: the DeepSpeed engine, exact resume, the guard, averaged weights and metrics."""
