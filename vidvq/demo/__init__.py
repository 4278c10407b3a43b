"""`vidvq demo`: the whole path, on the videos that ship with vidvq."""

from vidvq.demo.run import run_demo

__all__ = ["run_demo"]
