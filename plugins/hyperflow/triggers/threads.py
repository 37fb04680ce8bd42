"""Threads for calls to a vCenter, which block: each vCenter has its own, so that one that hangs holds up nobody else.

A call waits for its answer for a minute, and asyncio's own threads are few (CPUs and four more) and everybody's: with
forty exports from a vCenter that hangs, another's leases would not be kept alive for longer than they live.
"""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = TypeVar("Answer")

THREADS = 32  # for each vCenter: more calls than it takes well at once


async def in_thread(vcenter: str, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call a function in a thread of this vCenter, as ``asyncio.to_thread`` does in one of everybody's.

    :param vcenter: id of its connection
    """
    context = contextvars.copy_context()
    call = partial(context.run, function, *arguments)
    return await asyncio.get_running_loop().run_in_executor(threads_of(vcenter), call)


@cache
def threads_of(vcenter: str) -> ThreadPoolExecutor:
    """The threads of a vCenter; they are started as they are needed, and stay."""
    return ThreadPoolExecutor(THREADS, thread_name_prefix=f"vcenter {vcenter}")
