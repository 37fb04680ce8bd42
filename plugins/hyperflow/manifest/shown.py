"""Text from outside, such as a VM's name, as it is shown to a person: in a log, a title, a message."""

from __future__ import annotations

import re
from collections.abc import Sequence

SOME = 10  # words of a list that a person reads


def shown(text: str) -> str:
    """Keep text to one line that reads as it is written: what is not printable is written out, as ``\\u202e``.

    A line end forges a line of a log, an escape sequence hides one, and a right-to-left mark turns one round.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def shown_in_markdown(text: str) -> str:
    """Write text as a code span of Markdown, in which nothing is obeyed: no link, no image, no HTML."""
    line = shown(text)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}"  # the blanks are no part of it: CommonMark takes one away at each end


def some(words: Sequence[str]) -> str:
    """List words for a sentence, of many the first: ``a, b and 290 more``."""
    more = len(words) - SOME
    return ", ".join(words[:SOME]) + (f" and {more} more" if more > 0 else "")
