"""The callback of Airflow that a plan's notices become. It imports the notifier when there is something to tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from airflow.sdk import BaseNotifier
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.timeout import timeout

from hyperflow.notifications.classes import TEMPLATES_KNOW, make_notifier
from hyperflow.notifications.message import Message, of_question, of_vm, of_wave

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hyperflow.plans.notices import Notice

SECONDS = 60  # that a notifier may take: a mail server that does not answer must not hold up a question or a worker

About = Literal["vm", "wave", "question"]


class PlannedNotifier(BaseNotifier):
    """Calls one notifier that a plan names, when its event has happened. Never raises: no run fails for want of a mail.

    :param notice: what the plan says
    :param about: how a VM's or a wave's run ended, or a question
    :param plan: the plan's name
    :param name: of the VM (its slug), or as "wave NAME"
    """

    def __init__(self, notice: Notice, *, about: About, plan: str, name: str) -> None:
        super().__init__()
        self.notice = notice
        self.about = about
        self.plan = plan
        self.name = name

    def __call__(self, *args: Any) -> None:
        """Tell, with Airflow's context as the only argument; the notifier renders its own fields."""
        self.notify(args[0])

    def notify(self, context: Context) -> None:
        """Tell, if the plan wants this event told."""
        try:
            message = self.message(context)
            if message is None or message.event not in self.notice.on:
                return
            with cast("Any", timeout)(SECONDS, f"it took more than {SECONDS} s"):
                self.tell(context, message)
        except (Exception, AirflowTaskTimeout, SystemExit) as fault:  # noqa: BLE001 - other people's code
            self.log.warning("%s could not tell of %s: %s", self.notice.notifier, self.name, fault)
            return
        self.log.info("%s was told: %s", self.notice.notifier, message.subject)

    def message(self, context: Context) -> Message | None:
        """What is to be told."""
        made = {"vm": of_vm, "wave": of_wave, "question": of_question}[self.about]
        return made(cast("Any", context), self.plan, self.name)

    def tell(self, context: Context, message: Message) -> None:
        """Import the notifier and have it tell."""
        notifier = make_notifier(self.notice.notifier, self.notice.arguments)
        known: Any = {key: value for key, value in context.items() if key in TEMPLATES_KNOW}
        known["hyperflow"] = message
        notifier.render_template_fields(known)
        everything: Any = {**cast("Any", context), "hyperflow": message}
        notifier.notify(everything)


def told_of(notices: Sequence[Notice], about: About, plan: str, name: str) -> list[PlannedNotifier]:
    """Make the callbacks of those notices that such an event may concern."""
    wanted = {"vm": {"proven", "unproven", "failed"}, "wave": {"wave_done"}, "question": {"approval"}}[about]
    return [PlannedNotifier(one, about=about, plan=plan, name=name) for one in notices if wanted & set(one.on)]
