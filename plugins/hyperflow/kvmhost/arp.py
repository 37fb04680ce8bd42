"""Asks on a bridge whether an IPv4 address answers, and from which MAC; the host needs no address there itself.

An ARP probe (RFC 5227: the sender's address is 0.0.0.0) changes nobody's tables, and every IPv4 machine answers it.
"""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path
from typing import Optional

ARP = 0x0806
REQUEST, REPLY = 1, 2
BROADCAST = b"\xff" * 6
_HEADER = struct.Struct("!6s6sH")  # to, from, protocol
_BODY = struct.Struct("!HHBBH6s4s6s4s")  # hardware, protocol, their lengths, operation, sender, target


def who_has(interface: str, address: str, seconds: float) -> Optional[str]:  # noqa: UP045 - Python 3.9
    """Ask who has an address.

    :param interface: the bridge's name on this host
    :param address: dotted IPv4
    :param seconds: how long an answer is waited for
    :return: the MAC that answered, as ``00:50:56:9a:10:01``; None when nobody did
    :raises OSError: no such interface, or no right to use it
    """
    own = bytes.fromhex(Path("/sys/class/net", interface, "address").read_text().strip().replace(":", ""))
    wanted = socket.inet_aton(address)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ARP)) as link:
        link.bind((interface, ARP))
        link.send(
            _HEADER.pack(BROADCAST, own, ARP) + _BODY.pack(1, 0x0800, 6, 4, REQUEST, own, b"\0" * 4, b"\0" * 6, wanted)
        )
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            link.settimeout(left)
            try:
                frame = link.recv(2048)
            except OSError as fault:
                if fault.errno is None:  # the time is over; before Python 3.10 that is no TimeoutError
                    return None
                raise
            sender = _answer(frame, wanted)
            if sender is not None:
                return sender
    return None


def _answer(frame: bytes, wanted: bytes) -> Optional[str]:  # noqa: UP045 - Python 3.9
    if len(frame) < _HEADER.size + _BODY.size or _HEADER.unpack_from(frame)[2] != ARP:
        return None
    hardware, protocol, _, _, operation, sender, sender_address, _, _ = _BODY.unpack_from(frame, _HEADER.size)
    if (hardware, protocol, operation, sender_address) != (1, 0x0800, REPLY, wanted):
        return None
    return ":".join(f"{byte:02x}" for byte in sender)
