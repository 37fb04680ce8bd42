"""Text from outside, such as a VM's name, as it is shown to a person: in a log, a title, a message."""

from __future__ import annotations

import re

# Markdown's own characters, HTML's, and the at sign and colon by which bare addresses become links.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]()<>#+\-.!|~&@:$\"'=]")


def shown(text: str) -> str:
    """Keep text to one line that reads as it is written: what is not printable is written out, as ``\\u202e``.

    A line end forges a line of a log, an escape sequence hides one, and a right-to-left mark turns one round.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def shown_in_markdown(text: str) -> str:
    """Write text so that Markdown shows it and obeys none of it: no link, no image, no HTML."""
    return _MARKDOWN.sub(lambda match: f"&#{ord(match[0])};", shown(text))
