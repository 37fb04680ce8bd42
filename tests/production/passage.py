"""Ways from a container's loopback to the same ports of this machine's loopback.

The lab listens on loopback only, and a container has one of its own. So a listener is made inside the container's
network namespace, by a thread that enters it for that moment, and what it accepts is carried over by this process.
Nothing listens beyond a loopback, and nothing in the container knows of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import threading
from pathlib import Path

CLONE_NEWNET = 0x40000000  # setns(2); Python has os.setns from 3.12 on
CHUNK = 65536  # bytes


class Passages:
    """Carries connections until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def open(self, pid: int, port: int) -> None:
        """Let the processes beside one reach a port of this machine's loopback at their own.

        :param pid: a process in the container
        """
        listener = _listen_beside(pid, port)

        async def serve() -> asyncio.Server:
            return await asyncio.start_server(lambda reader, writer: _carry(reader, writer, port), sock=listener)

        self._servers.append(asyncio.run_coroutine_threadsafe(serve(), self._loop).result())

    def close(self) -> None:
        """End all of them."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        carrying = asyncio.all_tasks() - {asyncio.current_task()}
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)


def _listen_beside(pid: int, port: int) -> socket.socket:
    """Make a listener in the network namespace of another process."""
    made: list[socket.socket | BaseException] = []

    def enter_and_listen() -> None:  # in a thread of its own, which ends there: the namespace is the thread's
        descriptor = os.open(Path(f"/proc/{pid}/ns/net"), os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server(("127.0.0.1", port)))
        except OSError as fault:
            made.append(fault)
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=enter_and_listen)
    thread.start()
    thread.join()
    (listener,) = made
    if isinstance(listener, BaseException):
        raise listener
    return listener


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    try:
        there, back = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        writer.close()  # as refused as one can be that was accepted already
        return
    try:
        await asyncio.gather(_pump(reader, back), _pump(there, writer))
    finally:
        back.close()
        writer.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # the other end is gone, and so is this one
        while chunk := await source.read(CHUNK):
            target.write(chunk)
            await target.drain()
    with contextlib.suppress(OSError):
        target.write_eof()  # the other direction may go on
