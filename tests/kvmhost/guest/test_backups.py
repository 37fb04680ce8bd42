"""The books of what was changed in a guest: nothing new is left out, for all of it is given SELinux labels."""

from __future__ import annotations

from hyperflow.kvmhost.guest import backups
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles

from tests.kvmhost.guest.memory import Memory

RUN = f"{backups.FOLDER}/20250101T000000Z"


def test_a_folder_that_is_made_for_a_file_is_noted_with_it() -> None:
    changes = Changes(GuestFiles(Memory({"/etc/fstab": "a"})), False, RUN)
    changes.write("/etc/systemd/network/10.link", "a")
    changes.write("/etc/systemd/network/11.link", "a")
    changes.write("/etc/fstab.d/a", "a")
    assert changes.paths() == [
        "/etc/systemd",
        "/etc/fstab.d",
        "/etc/systemd/network/10.link",
        "/etc/systemd/network/11.link",
        "/etc/fstab.d/a",
    ]
    assert [one["path"] for one in changes.listed()] == changes.paths()[2:], "a report tells the files"


def test_the_folder_of_what_is_kept_is_noted_too() -> None:
    changes = Changes(GuestFiles(Memory({"/etc/fstab": "a", f"{backups.FOLDER}/earlier/etc/fstab": ""})), True, RUN)
    changes.write("/etc/fstab", "b")
    assert changes.paths() == [RUN, "/etc/fstab", f"{RUN}/etc/fstab"]
