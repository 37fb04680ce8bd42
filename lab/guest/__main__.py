"""``python3 -m lab.guest build``: build the guest, where it is not there yet, and say where it is."""

from __future__ import annotations

import sys

from lab.guest import build, ensure_guest, machine


def main(arguments: list[str]) -> int:
    """Run one command.

    :return: the exit status
    """
    try:
        match arguments:
            case ["build"]:
                print(ensure_guest())
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (build.BuildError, machine.ConsoleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
