"""Prove a converted guest by booting it: no proof, no success.

The guest runs on throw-away overlays over its final images, on the hardware it will be defined with, its
interfaces in a network that leads nowhere. A probe that was put on the overlay says from inside when the guest is
up and what it is; that is compared with what inspection expects of it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperflow.kvmhost import acceleration, commands, firmware
from hyperflow.kvmhost.hardware import Hardware, Image, mac, qemu_arguments, require_sound
from hyperflow.kvmhost.overlay import create
from hyperflow.kvmhost.probe import watch
from hyperflow.kvmhost.probe.machine import Machine
from hyperflow.kvmhost.probe.plant import Planted, Root, plant
from hyperflow.kvmhost.qmp import QmpError
from hyperflow.kvmhost.stage import BadRequest, Job, StageError, TryAgain

ANSWER = 120.0  # seconds for QEMU to list what it is built with, which takes it less than one
EVIDENCE = ("console.log", "screenshot.png", "screenshot.ppm")  # what a boot leaves for people; ppm by an older QEMU


@dataclass(frozen=True)
class Options:
    """What to boot and what to expect.

    :param images: the final images, boot disk first; they are only read
    :param work_directory: overlays go below it, and are removed at the end
    :param artifacts_directory: takes console.log and screenshot.png
    :param timeout_seconds: for the whole boot
    :param silence_seconds: without a sign of life from the guest
    :param expect: root {uuid, device, fstype}, networks [{name, mac, addresses}], mounts [{path, uuid, options}], as
        inspection found them; leases [mac], interfaces that DHCP gave an address on the source
    """

    images: list[Image]
    work_directory: Path
    artifacts_directory: Path
    hardware: Hardware
    expect: dict[str, Any] = field(default_factory=dict)
    timeout_seconds: int = 1800
    silence_seconds: int = 600


def run(options: Options, job: Job) -> dict[str, Any]:
    """Boot the guest and return what it said.

    :raises BadRequest: when the hardware cannot be, or the root file system is not named
    :raises StageError: when the guest did not come up, or is not as expected
    """
    for name in EVIDENCE:  # an earlier try's, also when this one does not come as far as to leave its own
        (options.artifacts_directory / name).unlink(missing_ok=True)
    require_sound(options.hardware, options.images)
    root = _root(options.expect)
    accelerator = acceleration.explain(job)
    job.log(f"boot: accelerator {accelerator.kind}, because {accelerator.reason}")
    before = _state(options.images)
    folder = options.work_directory / "boot"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier try's
    job.creating("overlay", folder)
    folder.mkdir(parents=True, mode=0o700)
    options.artifacts_directory.mkdir(parents=True, exist_ok=True)
    try:
        overlays = _overlays(options.images, folder, job)
        planted = plant(overlays, root, secrets.token_hex(16), job)
        job.log(f"boot: {'the probe is in the overlay' if planted.nonce else 'no systemd, so no probe'}")
        if planted.relabels:
            job.log("boot: the guest gives its files SELinux labels first (/.autorelabel), and restarts once for it")
        if options.expect.get("leases") and not _has_dhcp(str(acceleration.find_emulator())):
            job.warn("this QEMU is built without slirp: that the guest is given addresses by DHCP was not tried")
            options = dataclasses.replace(options, expect={**options.expect, "leases": []})
        arguments = _arguments(options, overlays, folder, accelerator.kind, job)
        observed = _boot(options, folder, arguments, planted, job)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if _state(options.images) != before:
        raise StageError("an image changed while the guest ran over an overlay; something else writes to it")
    return {
        "proven": True,
        "accelerator": accelerator.kind,
        "accelerator_reason": accelerator.reason,
        **observed,
    }


def _boot(options: Options, folder: Path, arguments: list[str], planted: Planted, job: Job) -> dict[str, Any]:
    """Run the guest until it is up, and keep its console and its screen."""
    console_log = options.artifacts_directory / "console.log"
    wanted = watch.Expectation(
        nonce=planted.nonce,
        expect=options.expect,
        macs=[mac(nic) for nic in options.hardware.nics],
        timeout=options.timeout_seconds,
        silence=options.silence_seconds,
        restarts=int(planted.relabels),
    )
    with Machine(arguments, folder, console_log, planted.relabels) as machine:
        version = machine.qmp.execute("query-version")["qemu"]
        job.tools["qemu-system"] = f"{version['major']}.{version['minor']}.{version['micro']}"
        try:
            evidence, seconds = watch.Watch(machine, wanted, job).until_up()
        except StageError:
            try:
                machine.screenshot(options.artifacts_directory / "screenshot.png")
            except QmpError as fault:  # a guest that ended has no screen left
                job.log(f"boot: there is no screenshot: {fault}")
            raise
        screenshot = machine.screenshot(options.artifacts_directory / "screenshot.png")
    _warn(evidence, planted.nonce, screenshot, job)
    return {
        "seconds_to_up": seconds,
        "evidence": evidence,
        "console_log": str(console_log),
        "screenshot": str(screenshot),
    }


def _warn(evidence: dict[str, Any], nonce: str | None, screenshot: Path, job: Job) -> None:
    if nonce is None:
        job.warn("the guest has no systemd: it showed a login prompt, its disks and interfaces were not compared")
    if evidence["failed_units"]:
        job.warn(f"units that failed in the booted guest: {', '.join(evidence['failed_units'])}")
    if screenshot.suffix != ".png":
        job.warn(f"this QEMU writes no PNG (that came with 7.1): the screenshot is {screenshot}")


def _arguments(options: Options, overlays: list[Path], folder: Path, accelerator: str, job: Job) -> list[str]:
    """Make QEMU's command line; consoles and monitor are the machine's own."""
    emulator = str(acceleration.find_emulator())
    hardware = _fit(options.hardware, job)
    uefi, variables = None, None
    if hardware.firmware == "uefi":
        uefi, variables = firmware.choose(hardware.machine, hardware.secureboot, job), folder / "variables"
        shutil.copyfile(uefi.variables, variables)
    disks = [
        {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": str(overlay)},
            "cache": {"direct": False, "no-flush": True},  # nothing of it outlives the proof
            "discard": "unmap",
        }
        for overlay in overlays
    ]
    arguments = [emulator, "-name", "hyperflow-proof"]
    if _offers(emulator, "-help", "-sandbox "):
        arguments += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    # restrict: DHCP answers, and nothing else leaves or enters; a hub port alone where QEMU is built without slirp
    user = _has_dhcp(emulator)
    for index in range(len(hardware.nics)):
        backend = f"user,id=net{index},restrict=on" if user else f"hubport,id=net{index},hubid={index}"
        arguments += ["-netdev", backend]
    return arguments + qemu_arguments(hardware, disks, accelerator, uefi, variables)


def _fit(hardware: Hardware, job: Job) -> Hardware:
    """Give the proof no more processors and memory than this host has free."""
    cpus = min(hardware.cpus, os.cpu_count() or 1)
    meminfo = Path("/proc/meminfo").read_text()
    available = int(meminfo.partition("MemAvailable:")[2].split()[0]) // 1024
    memory = min(hardware.memory_mb, max(available * 3 // 4, 256))
    if memory < hardware.memory_mb:
        job.warn(f"the proof ran with {memory} of {hardware.memory_mb} MiB: this host has {available} MiB available")
    if cpus < hardware.cpus:
        job.log(f"boot: with {cpus} of {hardware.cpus} processors, as many as this host has")
    return dataclasses.replace(hardware, cpus=cpus, memory_mb=memory)


@functools.cache
def _has_dhcp(emulator: str) -> bool:
    """Whether QEMU has a network of its own that answers by DHCP; RHEL's is built without."""
    return _offers(emulator, "-netdev help", "user")


def _offers(emulator: str, question: str, word: str) -> bool:
    try:
        answer = commands.run([emulator, *question.split()], capture_output=True, text=True, timeout=ANSWER)
    except commands.TimeoutExpired as fault:
        raise TryAgain(
            f"QEMU did not say what it is built with ({question}): no answer within {ANSWER:.0f} s"
        ) from fault
    return re.search(rf"^{re.escape(word)}", answer.stdout, re.MULTILINE) is not None


def _overlays(images: list[Image], folder: Path, job: Job) -> list[Path]:
    overlays = []
    for index, image in enumerate(images):
        overlay = folder / f"disk-{index}.qcow2"
        create(image.path, image.format, overlay)
        overlays.append(overlay)
    job.log(f"boot: {len(overlays)} throw-away overlay(s) in {folder}")
    return overlays


def _root(expect: dict[str, Any]) -> Root:
    root = expect.get("root")
    if not isinstance(root, dict) or not (root.get("uuid") or root.get("device")):
        raise BadRequest(f"options.expect.root: found {root!r}, expected the uuid or device of the root file system")
    if root.get("fstype") in ("ntfs", "vfat"):
        raise BadRequest("options.expect.root: found a Windows guest; a boot is proven for Linux guests only")
    mounts = expect.get("mounts") or []
    usr: dict[str, Any] = next((one for one in mounts if (one.get("path") or "").rstrip("/") == "/usr"), {})
    about = (root.get("uuid"), root.get("device"), root.get("fstype"), usr.get("uuid"), usr.get("options"))
    return Root(*(str(one or "") for one in about))


def _state(images: list[Image]) -> list[tuple[int, ...]]:
    """What would tell that an image was written to."""
    states = [image.path.stat() for image in images]
    return [(state.st_ino, state.st_size, state.st_blocks, state.st_mtime_ns) for state in states]
