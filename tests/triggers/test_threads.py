"""A vCenter that hangs keeps the triggers of others waiting for nothing."""

from __future__ import annotations

import asyncio
import contextvars
import threading

from hyperflow.triggers.threads import THREADS, in_thread

LIMIT = 60.0  # seconds a test waits before it gives up
TASK = contextvars.ContextVar("TASK", default="")


def test_a_vcenter_that_hangs_holds_up_neither_another_nor_what_is_no_vcenters() -> None:
    answers = threading.Event()

    async def ask() -> list[str]:
        hanging = [asyncio.create_task(in_thread("hangs", answers.wait)) for _ in range(2 * THREADS)]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(LIMIT):
                return [await in_thread("other", lambda: "kept alive"), await asyncio.to_thread(lambda: "audited")]
        finally:
            answers.set()
            assert all(await asyncio.gather(*hanging))

    assert asyncio.run(ask()) == ["kept alive", "audited"]


def test_what_is_asked_knows_which_task_asks() -> None:
    async def ask() -> str:
        TASK.set("export of disk-0")
        return await in_thread("vcenter", TASK.get)

    assert asyncio.run(ask()) == "export of disk-0"
