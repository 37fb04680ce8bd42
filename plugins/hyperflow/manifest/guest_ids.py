"""vSphere's guest ids and what they say of the guest.

Source: ``VirtualMachineGuestOsIdentifier`` of the vSphere API; a test compares the list with pyVmomi's.
"""

from __future__ import annotations

from typing import Literal

OsHint = Literal["linux", "windows", "unknown"]

# Beginnings of guest ids, after which a version and "Guest" follow. Neither Linux nor Windows are the BSDs,
# Solaris, OS/2, NetWare, OpenServer, UnixWare, macOS (darwin), ESXi (vmkernel) and DOS.
_LINUX = (
    "almalinux",
    "amazonlinux",
    "asianux",
    "centos",
    "coreos",
    "crxPod",
    "crxSys",
    "debian",
    "fedora",
    "flatcar",
    "fusionos",
    "genericLinux",
    "kylinlinux",
    "mandrake",
    "mandriva",
    "miraclelinux",
    "nld",
    "oes",
    "opensuse",
    "oracleLinux",
    "other24xLinux",
    "other26xLinux",
    "other3xLinux",
    "other4xLinux",
    "other5xLinux",
    "other6xLinux",
    "other7xLinux",
    "otherLinux",
    "pardus",
    "prolinux",
    "redhat",
    "rhel",
    "rockylinux",
    "sjds",
    "sles",
    "suse",
    "turboLinux",
    "ubuntu",
    "vmwarePhoton",
)


def os_hint(guest_id: str | None, guest_full_name: str | None = None) -> OsHint:
    """Tell the family of a guest.

    :param guest_id: as ``ubuntu64Guest``; newer vSphere versions know ids that this list does not
    :param guest_full_name: as ``Ubuntu Linux (64-bit)``, asked only when the id says nothing
    """
    if guest_id:
        if guest_id.startswith("win"):
            return "windows"
        if guest_id.startswith(_LINUX):
            return "linux"
    words = (guest_full_name or "").casefold()
    if "windows" in words:
        return "windows"
    return "linux" if "linux" in words else "unknown"


def firmware(value: str | None) -> Literal["bios", "uefi", "unknown"]:
    """Write vSphere's ``config.firmware`` as the manifest does."""
    return {"bios": "bios", "efi": "uefi", "uefi": "uefi"}.get(value or "", "unknown")  # type: ignore[return-value]
