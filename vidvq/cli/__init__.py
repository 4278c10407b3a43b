"""The `vidvq` command. Each command is thin: it reads arguments, calls its stage, and prints the result."""

from vidvq.cli.main import main

__all__ = ["main"]
