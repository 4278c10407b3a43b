"""Conformance of a tokenizer with the interface :class:`vidvq.model.Tokenizer`, for authors of plug-ins.

In a test of your own, ``vidvq.conformance.check(MyTokenizer())``; or from a shell, one test per rule:

``VIDVQ_TOKENIZER=my_package:MyTokenizer pytest --pyargs vidvq.conformance``
"""

from vidvq.conformance.rules import RULES, NotConforming, Rule, check

__all__ = ["RULES", "NotConforming", "Rule", "check"]
