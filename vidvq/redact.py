"""Credentials in URLs, hidden before they reach a record, a report or a log. Imports nothing of vidvq."""

import re

_USER = re.compile(r"(?<=://)[^/\s@]+@")
_NAMES = (
    r"x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid|googleaccessid|"
    r"signature|sig|key-pair-id|policy|(?:[a-z_]*_)?token|api[_-]?key|key|password|passwd|secret|auth"
)
_QUERY = re.compile(rf"([?&](?:{_NAMES})=)[^&\s#'\"]+", re.IGNORECASE)


def redact(text: str) -> str:
    """Text whose URLs have ``***`` for user names, passwords, tokens and signatures."""
    return _QUERY.sub(r"\1***", _USER.sub("***@", text)) if "://" in text else text
