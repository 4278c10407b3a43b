"""Text for records, reports and logs: without credentials in URLs, and without control characters.

Imports nothing of vidvq.
"""

import re

# Up to the last "@" of the authority: a password may hold others.
_USER = re.compile(r"(?<=://)[^/?#\s]+@")
_NAMES = (
    r"(?:[\w-]*[_-])?(?:signature|credential|token|key|secret|password)|awsaccesskeyid|googleaccessid|"
    r"sig|key-pair-id|policy|apikey|passwd|auth"
)
_QUERY = re.compile(rf"([?&](?:{_NAMES})=)[^&\s#'\"]+", re.IGNORECASE)
# Control characters, and those that reverse the direction of a line.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def redact(text: str) -> str:
    """Text whose URLs have ``***`` for user names, passwords, tokens and signatures."""
    return _QUERY.sub(r"\1***", _USER.sub("***@", text)) if "://" in text else text


def printable(text: str) -> str:
    """One line without control characters: a file name may hold line breaks and escape sequences of terminals."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
