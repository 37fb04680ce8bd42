"""Watches a booting guest until it says that it is up, or until it is clear that it will not be."""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass
from typing import Any

from hyperflow.kvmhost.probe import evidence
from hyperflow.kvmhost.probe.machine import Machine
from hyperflow.kvmhost.progress import duration
from hyperflow.kvmhost.qmp import QmpError
from hyperflow.kvmhost.stage import Job, StageError

LOOK = 3.0  # seconds between two looks at the console and the screen
TELL = 10.0  # seconds between two lines in the log about the guest
SETTLE = 60.0  # seconds a guest that is up has until its interfaces and mounts are as expected
LOGIN = re.compile(r"\blogin:\s*$")
LAST_LINES = 15  # of the console, in the message of a failure


@dataclass(frozen=True)
class Expectation:
    """When the guest counts as up, and how long it may take.

    :param nonce: what the probe repeats; None where there is no probe, then a login prompt is waited for
    :param expect: see :func:`evidence.differences`
    :param macs: the interfaces it has
    :param timeout: seconds in all
    :param silence: seconds without a sign of life
    :param restarts: how often the guest may restart before it is up; the machine must let it
    """

    nonce: str | None  # never read at run time, unlike a stage's options
    expect: dict[str, Any]
    macs: list[str]
    timeout: float
    silence: float
    restarts: int = 0


class Watch:
    """One boot, watched.

    :param machine: the running guest
    """

    def __init__(self, machine: Machine, wanted: Expectation, job: Job) -> None:
        self._machine = machine
        self._wanted = wanted
        self._job = job
        self._readers = [evidence.Reader(wanted.nonce or "none") for _ in ("port", "console")]
        self._screen: list[str] = []
        self._told = ""
        self._waits_for = ""
        self._suspicion = ""
        self._activity = -1
        now = time.monotonic()
        self._alive = self._looked = self._spoke = now
        self._up: float | None = None

    def until_up(self) -> tuple[dict[str, Any], float]:
        """Wait until the guest is up and as expected.

        :return: the evidence, and the seconds from switching it on until it was up
        :raises StageError: with the reason and the last lines of the console
        """
        while True:
            for reader, data in zip(self._readers, self._machine.listen(1.0)):
                for report in reader.feed(data):
                    found = self._judge(report)
                    if found is not None:
                        return found
            if self._machine.has_ended():
                raise self._failure(f"QEMU ended while the guest started. {self._machine.errors()}".strip())
            if time.monotonic() - self._looked >= LOOK:
                found = self._look()
                if found is not None:
                    return found

    def _judge(self, report: evidence.Report) -> tuple[dict[str, Any], float] | None:
        """Take a report: the evidence when the guest is as expected, None when more may come."""
        now = time.monotonic()
        self._alive = now
        observed = evidence.read(report)
        if observed["state"] in evidence.STARTING:
            self._waits_for = " ".join("".join(report.get("jobs", [])).split())[:300]
            return None
        if observed["state"] not in evidence.UP:
            raise self._failure(f"systemd in the guest is {observed['state']!r}, expected running")
        if self._up is None:
            self._up = now
            self._job.log(f"guest: up after {now - self._machine.started:.0f} s, systemd says {observed['state']}")
        differences = evidence.differences(observed, self._wanted.expect, self._wanted.macs)
        if not differences:
            return observed, round(self._up - self._machine.started, 1)
        if now - self._up > SETTLE:
            raise self._failure("the guest is up, but not as expected: " + "; ".join(differences), console=False)
        self._tell(f"up, waiting for: {'; '.join(differences)}")
        return None

    def _look(self) -> tuple[dict[str, Any], float] | None:
        """Look at the console and the screen for an end, a login prompt, or a sign of life."""
        try:
            self._screen = self._machine.screen()
            activity = self._machine.activity()
            stopped = self._machine.stopped()
        except QmpError:
            if self._machine.has_ended():
                return None  # the caller says so
            raise
        self._looked = now = time.monotonic()
        console = self._machine.console()
        if activity != self._activity:
            self._activity, self._alive = activity, now
        reason = self._machine.dead_end(console, self._screen) if self._up is None else None
        if reason and (stopped or self._suspicion == reason):  # twice, so that the lines after it are in the log
            raise self._failure(reason)
        self._suspicion = reason or ""
        if self._machine.qmp.resets > self._wanted.restarts:
            raise self._failure("the guest switched itself off or reset, more often than it has to")
        if stopped:
            if word := self._machine.qmp.shutdown:
                raise self._failure(f"the guest switched itself off or reset (QEMU calls it {word})")
            raise self._failure(f"QEMU has stopped the guest: found its state {stopped}, expected running")
        shown = (console or self._screen or [""])[-1]
        if self._wanted.nonce is None and any(LOGIN.search(lines[-1]) for lines in (console, self._screen) if lines):
            return _weak_evidence(shown), round(now - self._machine.started, 1)
        self._check_patience(now)
        if self._up is None:
            self._tell(shown)
        return None

    def _check_patience(self, now: float) -> None:
        running, silent = now - self._machine.started, now - self._alive
        waits = f"; it waits for {self._waits_for}" if self._waits_for else ""
        if running > self._wanted.timeout:
            raise self._failure(f"the guest was not up after {duration(running)}{waits}")
        if silent > self._wanted.silence:
            raise self._failure(f"the guest gave no sign of life for {duration(silent)}{waits}")

    def _tell(self, line: str) -> None:
        now = time.monotonic()
        if line and line != self._told and now - self._spoke >= TELL:
            self._told, self._spoke = line, now
            self._job.log(f"guest after {now - self._machine.started:.0f} s: {line[:200]}")

    def _failure(self, reason: str, console: bool = True) -> StageError:
        lines = [line for line, _ in itertools.groupby(self._machine.console() or self._screen)]
        if not console or not lines:
            return StageError(reason)
        return StageError(f"{reason}. Its last lines: {' | '.join(lines[-LAST_LINES:])}")


def _weak_evidence(prompt: str) -> dict[str, Any]:
    """What a login prompt proves: that the guest came that far, and nothing about its devices."""
    return {
        "state": "login prompt",
        "login_prompt": prompt[-200:],
        "failed_units": [],
        "root_device": {},
        "mounts": [],
        "nics": [],
        "kernel": "",
        "hostname": "",
    }
