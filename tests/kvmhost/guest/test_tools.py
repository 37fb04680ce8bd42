"""VMware Tools: what dpkg says of them."""

from __future__ import annotations

from hyperflow.kvmhost.guest import tools

STATUS = """Package: open-vm-tools
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
