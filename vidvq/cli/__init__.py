"""The `vidvq` command. Each verb is thin: it reads arguments, loads its stage, and prints what came out."""

from vidvq.cli.main import main

__all__ = ["main"]
