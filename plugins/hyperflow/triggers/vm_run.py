"""Waits for the end of a VM's run, for its wave."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.triggers.external_task import DagStateTrigger
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import TriggerEvent
from asgiref.sync import sync_to_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ACTIVE = ["queued", "running"]  # states of a run that works


class VmRunTrigger(DagStateTrigger):
    """Fires when a run is over, with Airflow's event; and when it is not there any more, with no state for it.

    Airflow's own waits for ever for a run that somebody has deleted.

    :param dag_id: the VM's DAG
    :param run_ids: the run, alone
    :param poll_interval: seconds between looks
    """

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Say how Airflow makes it anew."""
        _, arguments = super().serialize()
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until the run works no more; one question each time."""
        run_id = (self.run_ids or [""])[0]
        while True:
            if not await self.count(ACTIVE):
                state = await self.state(run_id) if await self.count(None) else None
                if state not in ACTIVE:  # a person may have cleared a task of it just now
                    break
            await asyncio.sleep(self.poll_interval)
        name, arguments = self.serialize()
        yield TriggerEvent((name, {**arguments, run_id: state}))

    async def count(self, states: list[str] | None) -> int:
        """1 when the run is there and in one of these states, or in any; else 0."""
        ask = sync_to_async(RuntimeTaskInstance.get_dr_count)
        return await ask(dag_id=self.dag_id, run_ids=self.run_ids, states=states)

    async def state(self, run_id: str) -> str:
        """The run's state."""
        return await sync_to_async(RuntimeTaskInstance.get_dagrun_state)(dag_id=self.dag_id, run_id=run_id)
