"""``python3 -m lab.guest build|virtio``: build the guest, or watch it fail on virtio."""

from __future__ import annotations

import sys

from lab.guest import boots_on_virtio, build, ensure_guest, machine


def main(arguments: list[str]) -> int:
    """Run one command.

    :return: the exit status
    """
    try:
        match arguments:
            case ["build"]:
                print(ensure_guest())
            case ["virtio"]:
                booted, console = boots_on_virtio(ensure_guest())
                print(console)
                print(f"boots on virtio: {'yes' if booted else 'no'}")
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (build.BuildError, machine.ConsoleError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
