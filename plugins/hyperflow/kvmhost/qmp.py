"""A small client of QEMU's machine protocol (QMP), over a socket that QEMU inherited."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from hyperflow.kvmhost.stage import StageError

RESET_SECONDS = 3  # what comes in them is one restart: SeaBIOS resets the machine once more by itself
ANSWER = 120.0  # seconds that QEMU may take to answer: its main loop waits, too, for the disks of a busy host
LINE_LIMIT = 4 * 1024 * 1024  # bytes of one answer


class QmpError(StageError):
    """QEMU refused a command, or is gone."""


class Qmp:
    """A connection to the monitor of a running QEMU.

    :param connection: one end of a socket pair whose other end is QEMU's ``-mon mode=control`` character device
    :ivar shutdown: QEMU's word for why its guest runs no more, such as ``guest-reset`` (ShutdownCause of QEMU's
        run-state.json); None while it has told none
    :ivar resets: how often the guest has restarted itself, where QEMU lets it
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""
        self.shutdown: str | None = None
        self.resets = 0
        self._reset_at = 0
        self._read(ANSWER)  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, limit: float = ANSWER, **arguments: Any) -> Any:
        """Run a command and return its answer; of events that come meanwhile a shutdown and a reset are kept.

        :param limit: seconds
        :raises QmpError: when QEMU refuses it, ends, or does not answer in time
        """
        request = {"execute": command, "arguments": arguments}
        try:
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as fault:
            raise QmpError(f"QEMU is gone: {fault.strerror}") from fault
        deadline = time.monotonic() + limit
        while True:
            answer = self._read(deadline - time.monotonic())
            if answer.get("event") == "SHUTDOWN":
                self.shutdown = str(answer["data"].get("reason"))
            if answer.get("event") == "RESET" and answer["data"].get("guest"):
                self._count_reset(int(answer["timestamp"]["seconds"]))
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpError(f"QEMU refused {command}: {answer['error'].get('desc')}")

    def _count_reset(self, at: int) -> None:
        if abs(at - self._reset_at) > RESET_SECONDS:
            self.resets += 1
            self._reset_at = at

    def _read(self, limit: float) -> dict[str, Any]:
        deadline = time.monotonic() + limit
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or len(self._buffer) > LINE_LIMIT:
                raise QmpError("QEMU does not answer on its monitor")
            self._connection.settimeout(left)
            try:
                piece = self._connection.recv(65536)
            except OSError as fault:
                raise QmpError(f"QEMU does not answer on its monitor: {fault}") from fault
            if not piece:
                raise QmpError("QEMU ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        document: dict[str, Any] = json.loads(line)
        return document
