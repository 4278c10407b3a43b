"""`vidvq demo`: the whole pipeline, on the bundled videos."""

from vidvq.demo.run import run_demo

__all__ = ["run_demo"]
