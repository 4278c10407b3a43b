"""Tests. A package, because some distributions install a top-level package ``tests``, which would come first."""
