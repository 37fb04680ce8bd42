"""VMware Tools: what dpkg says of them."""

from __future__ import annotations

import tracemalloc

import pytest
from hyperflow.kvmhost.guest import stale, tools
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles, TooLarge
from hyperflow.kvmhost.stage import Job

from tests.kvmhost.guest.memory import Memory, guest

STATUS = b"""Package: open-vm-tools
Status: install ok installed
Version: 2:12.2.0-1+deb12u4

Package: open-vm-tools-desktop
Status: deinstall ok config-files
Version: 2:12.2.0-1

Package: open-vm-toolsmith
Status: install ok installed
Version: 1
"""


def test_installed_packages_are_found_and_removed_ones_are_not() -> None:
    assert tools.dpkg_packages(STATUS, tools.PACKAGES) == [tools.Package("open-vm-tools", "2:12.2.0-1+deb12u4")]


def test_a_list_as_long_as_it_may_be_is_read_in_little_more_memory_than_its_bytes() -> None:
    """Text with one such character would take four times the bytes, and its paragraphs as much again."""
    filler = ("Package: x\nDescription: \U0001f427" + "x" * 60_000 + "\n\n").encode()
    content = filler * ((tools.DPKG_STATUS_LIMIT - len(STATUS)) // len(filler)) + STATUS
    files = guest({tools.DPKG_STATUS: content})
    tracemalloc.start()
    try:
        found = tools.packages(files)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [one.name for one in found] == ["open-vm-tools"]
    assert most < len(content) // 2, "besides the content itself, which was there before"


def test_a_list_of_packages_beyond_every_measure_is_refused() -> None:
    with pytest.raises(TooLarge, match="/var/lib/dpkg/status in the guest: found 33554433 bytes, expected at most"):
        tools.packages(guest({tools.DPKG_STATUS: b"x" * (tools.DPKG_STATUS_LIMIT + 1)}))


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_package_manager_writes_is_given_selinux_labels(fails: bool) -> None:
    """rpm -e runs ldconfig, whose new cache no service could read in an enforcing guest."""
    contexts = stale.FILE_CONTEXTS.format("targeted")
    there = {"/usr/bin/rpm": "", "/usr/bin/vmtoolsd": "", "/etc/ld.so.cache": "", "/var/lib/rpm/Packages": ""}
    memory = Memory({**there, "/etc/selinux/config": "SELINUX=enforcing\n", "/sbin/setfiles": "", contexts: ""})
    labelled: list[str] = []

    def ran(arguments: list[str]) -> bytes:
        if arguments[0].endswith("setfiles"):
            labelled.extend(arguments)
        if arguments[:2] == ["rpm", "-e"]:
            if fails:
                raise RuntimeError("a script of the package failed")
            del memory.files["/usr/bin/vmtoolsd"]
        return b"open-vm-tools 12.3\n" if "/usr/bin/vmtoolsd" in memory.files and "-qa" in arguments else b""

    memory._command = ran
    files, job = GuestFiles(memory), Job("fix")
    changes = Changes(files, False, "/b")
    assert tools.handle(files, changes, True, job)["action"] == ("left" if fails else "removed")
    stale.label(files, changes, job)
    assert labelled == ["/sbin/setfiles", "-F", contexts, "/etc/ld.so.cache", "/var/lib/rpm"]
