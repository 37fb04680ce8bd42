"""VMware's guest tools: removed by the guest's package manager, or shown to do nothing on KVM."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles, decode
from hyperflow.kvmhost.stage import Job, StageError

DPKG_STATUS = "/var/lib/dpkg/status"
DPKG_STATUS_LIMIT = 32 * 1024 * 1024  # bytes; a desktop's has some 10 MB
PACKAGES = re.compile(r"open-vm-tools(?:-[a-z-]+)?|vmware-tools(?:-[a-z-]+)?|kmod-vmware-tools|open-vm-dkms")
UNITS = (
    "open-vm-tools.service",
    "vgauth.service",
    "vmtoolsd.service",
    "vgauthd.service",
    "vmware-tools.service",
    "run-vmblock\\x2dfuse.mount",
)
UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
TARBALL = "/usr/bin/vmware-uninstall-tools.pl"  # of VMware's own installer, outside any package manager
DAEMON = ("/usr/bin/vmtoolsd", "/usr/sbin/vmtoolsd")
# What a package manager writes besides the package's own files. On Fedora rpm's list is below /usr.
WRITTEN = ("/etc/ld.so.cache", "/var/cache/ldconfig", "/var/lib/dpkg", "/var/lib/rpm", "/usr/lib/sysimage/rpm")
QEMU_AGENT = ("/usr/sbin/qemu-ga", "/usr/bin/qemu-ga")


@dataclass(frozen=True)
class Package:
    """An installed package."""

    name: str
    version: str


def packages(files: GuestFiles, pattern: re.Pattern[str] = PACKAGES) -> list[Package]:
    """List the installed packages of that name, by dpkg's own list; none on a guest without dpkg."""
    content = files.read(DPKG_STATUS, DPKG_STATUS_LIMIT)
    return [] if content is None else dpkg_packages(content, pattern)


def dpkg_packages(content: bytes, pattern: re.Pattern[str]) -> list[Package]:
    """Read dpkg's status file; a package that was removed and left its configuration is not installed."""
    found = []
    for paragraph in _paragraphs(content):
        name = re.match(r"\n*Package: (\S+)", paragraph)
        if name is None or not pattern.fullmatch(name[1]):
            continue
        status = re.search(r"^Status: \S+ \S+ (\S+)$", paragraph, re.M)
        version = re.search(r"^Version: (\S+)$", paragraph, re.M)
        if status and status[1] in ("installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending"):
            found.append(Package(name[1], version[1] if version else ""))
    return found


def _paragraphs(content: bytes) -> Iterator[str]:
    """Give the paragraphs one by one: the whole file as text, and that in pieces, would be many times its bytes."""
    at = 0
    while at < len(content):
        end = content.find(b"\n\n", at)
        end = len(content) if end < 0 else end
        yield decode(content[at:end])
        at = end + 2


def rpm_packages(files: GuestFiles) -> list[Package]:
    """Ask the guest's rpm; only where a guest's programs may be run."""
    program = files.program("rpm")
    if program is None or files.is_file(DPKG_STATUS):
        return []
    said = files.run(
        [program, "-qa", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\\n", "open-vm-tools*", "vmware-tools*", "kmod-vmware*"]
    )
    words = (line.split() for line in said.splitlines())
    return [Package(one[0], one[1]) for one in words if len(one) == 2 and PACKAGES.fullmatch(one[0])]


def installed(files: GuestFiles) -> bool:
    """Whether the daemon is there, from a package or not."""
    return files.first(DAEMON) is not None


def qemu_agent(files: GuestFiles) -> bool:
    """Whether QEMU's guest agent is there."""
    return files.first(QEMU_AGENT) is not None


def handle(files: GuestFiles, changes: Changes, remove: bool, job: Job) -> dict[str, Any]:
    """Remove the tools, or see to it that they do nothing on KVM; what is there afterwards.

    :param remove: by the guest's package manager; where that fails they are disabled, with a warning
    """
    before = [*packages(files), *rpm_packages(files)]
    was_installed = installed(files)
    action = "none" if not was_installed and not before else "left"
    if remove and before:
        try:
            _remove(files, changes, before)
            action = "removed"
        except StageError as fault:
            job.warn(f"VMware Tools could not be removed: {fault}; their services are disabled instead")
    elif remove and was_installed:
        job.warn(f"VMware Tools came from no package; remove them in the guest with {TARBALL}")
    services = _silence(files, changes) if installed(files) else []
    if any(one["masked"] for one in services):
        action = "disabled" if action == "left" else action
    after = [*packages(files), *rpm_packages(files)]
    if action == "removed" and (after or installed(files)):
        raise StageError(f"VMware Tools: found {after or 'vmtoolsd'} after the package manager removed them")
    return {
        "installed_before": was_installed,
        "packages_before": [vars(one) for one in before],
        "action": action,
        "installed": installed(files),
        "packages": [vars(one) for one in after],
        "services": services,
    }


def _remove(files: GuestFiles, changes: Changes, found: Sequence[Package]) -> None:
    names = [one.name for one in found]
    try:
        if files.is_file(DPKG_STATUS):
            # --remove keeps configuration files; nothing is downloaded and nothing else is removed
            files.run(["dpkg", "--remove", *names], ["DEBIAN_FRONTEND=noninteractive"])
        else:
            files.run(["rpm", "-e", *names])
    finally:
        for path in filter(files.exists, WRITTEN):
            changes.regenerated(path)


def _silence(files: GuestFiles, changes: Changes) -> list[dict[str, Any]]:
    """Mask the services that would run outside VMware; those that start only on VMware are left as they are."""
    seen = []
    for unit in UNITS:
        text, path = _unit(files, unit)
        if text is None or path is None:
            continue
        condition: str | None = None
        match = re.search(r"^[ \t]*ConditionVirtualization=[ \t]*(\S+)", text, re.M)
        if match:
            condition = match[1]
        masked = False
        if condition != "vmware":
            mask = f"/etc/systemd/system/{unit}"
            if not files.handle.is_symlink(mask) and not files.exists(mask):
                changes.linked(mask, "/dev/null")
            masked = bool(files.handle.is_symlink(mask)) and files.handle.readlink(mask) == "/dev/null"
        seen.append({"unit": unit, "file": path, "condition_virtualization": condition, "masked": masked})
    return seen


def _unit(files: GuestFiles, unit: str) -> tuple[str | None, str | None]:
    for folder in UNIT_FOLDERS:
        text = files.read_text(f"{folder}/{unit}")
        if text is not None:
            return text, f"{folder}/{unit}"
    return None, None
