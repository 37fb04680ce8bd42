"""Judges notifiers in a process of its own, for ``./hyperflow plan check``, which knows no Airflow.

Standard input: a JSON list of ``[class path, arguments]``. Standard output, its last line: a JSON list of what is wrong
with each, ``[place, found, expected]``.
"""

from __future__ import annotations

import json
import sys

from hyperflow.notifications.classes import allowed_notifiers, judge_notifier


def main() -> None:
    """Read, judge, write."""
    allowed = allowed_notifiers()
    verdicts = [judge_notifier(path, arguments, allowed) for path, arguments in json.load(sys.stdin)]
    print(json.dumps(verdicts))


if __name__ == "__main__":
    main()
