"""Boot entries: read from GRUB's, BLS', extlinux' files, and freed of device names."""

from __future__ import annotations

import pytest
from hyperflow.kvmhost.guest import bootloader
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.devices import Devices, FileSystem
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.stage import Job, StageError

from tests.kvmhost.guest.memory import Memory, guest

UUID = "abf13a4d-d772-4338-92ec-c50b12fb5102"
GUEST = Devices(
    [FileSystem("/dev/sda1", "ext4", UUID, "", "disk-0"), FileSystem("/dev/sda2", "swap", "5a5a", "", "disk-0")],
    ["disk-0"],
)

GRUB_CFG = """
set default="0"
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
\tsearch --no-floppy --fs-uuid --set=root abf13a4d
\tlinux\t/boot/vmlinuz-6.1.0-56-amd64 root=/dev/sda1 ro console=ttyS0 quiet
\tinitrd\t/boot/initrd.img-6.1.0-56-amd64
}
submenu 'Advanced options for Debian GNU/Linux' {
\tmenuentry "Debian, with Linux 6.1 (recovery mode)" {
\t\tlinuxefi /vmlinuz-6.1 "root=UUID=abf13a4d-d772-4338-92ec-c50b12fb5102" ro single
\t}
\tmenuentry 'memtest' {
\t\tlinux16 /boot/memtest86+.bin
\t}
}
"""

# As RHEL 8 writes it with kernelopts in grubenv, and RHEL 9 with the options spelled out.
BLS_8 = "title Red Hat Enterprise Linux (4.18.0) 8.9\nlinux /vmlinuz-4.18.0\noptions $kernelopts $tuned_params\n"
BLS_9 = """title RHEL 9
# no comment counts
linux /vmlinuz-5.14.0
options root=/dev/sda1 ro
options resume=/dev/sda2 quiet
"""


def test_each_kernel_line_of_grub_is_an_entry_with_its_root() -> None:
    found = [(one.title, one.kernel, one.root) for one in bootloader.grub_entries("/boot/grub/grub.cfg", GRUB_CFG)]
    assert found == [
        ("Debian GNU/Linux", "/boot/vmlinuz-6.1.0-56-amd64", "/dev/sda1"),
        ("Debian, with Linux 6.1 (recovery mode)", "/vmlinuz-6.1", f"UUID={UUID}"),
        ("memtest", "/boot/memtest86+.bin", ""),
    ]


def test_an_entry_that_names_a_device_or_another_file_system_is_a_fault() -> None:
    entries = bootloader.grub_entries("/boot/grub/grub.cfg", GRUB_CFG)
    (fault,) = bootloader.faults(entries, GUEST, UUID)
    assert "found root=/dev/sda1, expected UUID=" in fault
    swap = bootloader.BootEntry("f", "t", "k", "UUID=5a5a")
    assert len(bootloader.faults([swap], GUEST, UUID)) == 1
    assert bootloader.faults([bootloader.BootEntry("f", "t", "k", "/dev/mapper/vg-root")], GUEST, UUID) == []


def test_root_and_resume_become_uuids_and_other_arguments_stay() -> None:
    before = 'linux /vmlinuz root=/dev/sda1 ro resume=/dev/sda2 myroot=/dev/sda1 x=root=/dev/sdz9 "root=/dev/sda1"'
    after = bootloader.stabilize_arguments(before, GUEST.uuid_name)
    assert (
        after
        == f'linux /vmlinuz root=UUID={UUID} ro resume=UUID=5a5a myroot=/dev/sda1 x=root=/dev/sdz9 "root=UUID={UUID}"'
    )


def test_settings_of_grub_that_forbid_uuids_become_comments() -> None:
    before = (
        "GRUB_DEFAULT=0\nGRUB_DISABLE_LINUX_UUID=true\n  export GRUB_DISABLE_UUID=true\n#GRUB_DISABLE_UUID=true\n"
        'GRUB_CMDLINE_LINUX="root=/dev/sda1 console=ttyS0"\n'
    )
    after = bootloader.stabilize_defaults(before, GUEST.uuid_name)
    assert after == (
        "GRUB_DEFAULT=0\n# by hyperflow: GRUB_DISABLE_LINUX_UUID=true\n# by hyperflow: export GRUB_DISABLE_UUID=true\n"
        f'#GRUB_DISABLE_UUID=true\nGRUB_CMDLINE_LINUX="root=UUID={UUID} console=ttyS0"\n'
    )
    assert bootloader.stabilize_defaults(after, GUEST.uuid_name) == after


def test_entries_of_red_hat_are_read_with_the_variable_they_refer_to() -> None:
    entry = bootloader.bls_entry("/boot/loader/entries/a.conf", BLS_8, "root=/dev/mapper/rhel-root ro")
    assert (entry.title, entry.root) == ("Red Hat Enterprise Linux (4.18.0) 8.9", "/dev/mapper/rhel-root")
    assert bootloader.bls_entry("/x.conf", BLS_9, "").root == "/dev/sda1"
    assert "options root=UUID=" + UUID in bootloader.stabilize_arguments(BLS_9, GUEST.uuid_name)
    assert "options resume=UUID=5a5a quiet" in bootloader.stabilize_arguments(BLS_9, GUEST.uuid_name)


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("/boot/grub2/grub.cfg", "\tlinux /vmlinuz root=UUID=1 net.ifnames=0 biosdevname=0\n", True),
        ("/boot/loader/entries/a.conf", "options root=UUID=1 net.ifnames=0\n", True),
        ("/etc/default/grub", 'GRUB_CMDLINE_LINUX="net.ifnames=0"\n', True),
        ("/etc/default/grub", '# GRUB_CMDLINE_LINUX="net.ifnames=0"\n', False),
        ("/boot/grub2/grub.cfg", "\tlinux /vmlinuz root=UUID=1 net.ifnames=1\n", False),
    ],
)
def test_a_guest_whose_kernel_names_the_interfaces_is_known(path: str, text: str, told: bool) -> None:
    assert bootloader.kernel_names_interfaces(guest({path: text})) is told


def test_grubs_environment_stays_one_block() -> None:
    block = "# GRUB Environment Block\nsaved_entry=x\nkernelopts=root=/dev/sda1 ro \n".ljust(1024, "#")
    after = bootloader.stabilize_environment(block, GUEST.uuid_name)
    assert len(after) == 1024
    assert f"kernelopts=root=UUID={UUID} ro \n#" in after


def test_entries_of_extlinux_and_grub_1_are_read() -> None:
    extlinux = "default l0\nlabel l0\n  linux /vmlinuz\n  append root=/dev/sda1 ro\n"
    assert [(one.title, one.root) for one in bootloader.plain_entries("/e", extlinux)] == [("l0", "/dev/sda1")]
    grub1 = "title CentOS (2.6.32)\n\troot (hd0,0)\n\tkernel /vmlinuz-2.6.32 ro root=/dev/sda1\n"
    assert [(one.title, one.root) for one in bootloader.plain_entries("/m", grub1)] == [
        ("CentOS (2.6.32)", "/dev/sda1")
    ]


def test_a_link_of_grub_to_its_own_closed_file_is_read_and_changed() -> None:
    """RHEL 6 has menu.lst, which is grub.conf, which may hold a password."""
    grub1 = "password --md5 x\ntitle CentOS\n\tkernel /vmlinuz ro root=/dev/sda1\n"
    memory = Memory({"/boot/grub/grub.conf": grub1}, links={"/boot/grub/menu.lst": "/boot/grub/grub.conf"})
    files, job = GuestFiles(memory), Job("fix")
    assert {one.root for one in bootloader.read_entries(files, job)} == {"/dev/sda1"}
    bootloader.stabilize(files, Changes(files, False, "/b"), GUEST, job)
    assert {one.root for one in bootloader.read_entries(files, job)} == {f"UUID={UUID}"}


@pytest.mark.parametrize("link", ["/boot/grub/menu.lst", "/boot/grub2/grub.cfg", "/etc/default/grub"])
@pytest.mark.parametrize("secret", ["/etc/shadow", "/boot/efi/key"])
def test_a_link_of_grub_to_a_secret_is_not_followed(link: str, secret: str) -> None:
    files = GuestFiles(Memory({secret: "root:$6$"}, links={link: secret}))
    with pytest.raises(StageError, match=f"{link} in the guest: found a link to {secret}"):
        files.read_text(link)


@pytest.mark.parametrize(
    ("path", "text", "kind"),
    [
        ("/boot/efi/EFI/redhat/grub.cfg", GRUB_CFG, "grub2"),
        ("/boot/efi/EFI/redhat/grub.conf", "title RHEL 6\n\tkernel /vmlinuz ro root=/dev/sda1\n", "grub1"),
    ],
)
def test_entries_on_the_efi_system_partition_are_read_and_changed_and_never_made_anew(
    path: str, text: str, kind: str
) -> None:
    memory = Memory({path: text, "/boot/efi/EFI/BOOT/BOOTX64.EFI": "MZ", "/usr/sbin/grub2-mkconfig": ""})
    files, job = GuestFiles(memory), Job("fix")
    assert bootloader.detect(files) == kind
    assert "/dev/sda1" in {one.root for one in bootloader.read_entries(files, job)}
    changes = Changes(files, False, "/b")
    bootloader.stabilize(files, changes, GUEST, job)
    assert bootloader.regenerate(files, changes, GUEST, UUID, job) is None
    assert {one.root for one in bootloader.read_entries(files, job)} - {""} == {f"UUID={UUID}"}


def test_options_on_hundreds_of_thousands_of_lines_are_read_at_once() -> None:
    text = "options x\n" * 400_000 + "options root=/dev/sda1\n"
    assert bootloader.bls_entry("/x.conf", text, "").root == "/dev/sda1"


def test_a_variable_that_is_named_a_hundred_thousand_times_does_not_fill_the_memory() -> None:
    text = "options " + "$kernelopts " * 300_000
    assert bootloader.bls_entry("/x.conf", text, "ro " * 300_000 + "root=/dev/sda1").root == "/dev/sda1"


def test_an_entry_is_no_longer_than_a_person_reads() -> None:
    long = "x" * 1_000_000
    (entry,) = bootloader.grub_entries(
        "/boot/grub/grub.cfg", f"menuentry '{long}' {{\nlinux /{long} root=/dev/{long}\n}}"
    )
    assert max(map(len, (entry.title, entry.kernel, entry.root))) == bootloader.SHOWN


def test_more_entries_than_a_person_makes_are_told() -> None:
    job = Job("inspect")
    files = guest({"/boot/grub/grub.cfg": "menuentry 'many' {\n" + "linux /x root=/dev/sda1\n" * 100_000})
    assert len(bootloader.read_entries(files, job)) == bootloader.MOST
    (warning,) = job.warnings
    assert warning.startswith("boot entries: found more than 1000; those from /boot/grub/grub.cfg, 'many' on")


def test_of_what_grub_mkconfig_says_the_end_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """A guest's program may print 64 MiB."""
    there = {"/boot/grub/grub.cfg": GRUB_CFG, "/usr/sbin/grub-mkconfig": ""}
    said = "".join(f"said {number}\n" for number in range(100_000))
    files = GuestFiles(Memory(there, lambda _: said.encode()))
    assert bootloader.regenerate(files, Changes(files, False, "/b"), GUEST, UUID, Job("fix")) == "/boot/grub/grub.cfg"
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"/usr/sbin/grub-mkconfig: said {number}" for number in range(99_980, 100_000)]


ROOT_BY_NAME = "menuentry 'CentOS 7' {\n\tlinux16 /vmlinuz-3.10 root=%s ro fips=1 ipv6.disable=1\n}\n"
MADE_BY_GUEST = f"menuentry 'CentOS 7' {{\n\tlinux16 /vmlinuz-3.10 root=UUID={UUID} ro\n}}\n"


def made_anew(root: str, made: str) -> Memory:
    """Fix the entries of a RHEL 7 whose grubby has written arguments into grub.cfg; what its grub-mkconfig makes."""
    path = "/boot/grub2/grub.cfg"
    memory = Memory({path: ROOT_BY_NAME % root, "/usr/sbin/grub2-mkconfig": ""})
    memory._command = lambda _: memory.write(path, made.encode()) or b"done\n"
    files = GuestFiles(memory)
    changes = Changes(files, False, "/b")
    bootloader.stabilize(files, changes, GUEST, Job("fix"))
    bootloader.regenerate(files, changes, GUEST, UUID, Job("fix"))
    return memory


@pytest.mark.parametrize(
    ("root", "after"), [("/dev/mapper/centos-root", "/dev/mapper/centos-root"), ("/dev/sda1", f"UUID={UUID}")]
)
def test_entries_that_find_the_root_keep_arguments_that_stand_nowhere_else(root: str, after: str) -> None:
    assert made_anew(root, MADE_BY_GUEST).files["/boot/grub2/grub.cfg"].decode() == ROOT_BY_NAME % after


def test_entries_that_cannot_be_rewritten_are_made_anew_by_the_guest() -> None:
    made = ROOT_BY_NAME % f"UUID={UUID}"
    assert made_anew("/dev/sdz9", made).files["/boot/grub2/grub.cfg"].decode() == made


def test_an_entry_that_the_guests_own_program_leaves_out_has_lost_no_arguments() -> None:
    other = f"menuentry 'Debian 12' {{\n\tlinux /boot/vmlinuz-6.1 root=UUID={UUID} ro\n}}\n"
    assert made_anew("/dev/sdz9", other).files["/boot/grub2/grub.cfg"].decode() == other


def test_arguments_that_the_guests_own_program_takes_away_stop_fix() -> None:
    with pytest.raises(StageError, match=r"taken arguments away from /vmlinuz-3\.10: fips=1 ipv6\.disable=1; write"):
        made_anew("/dev/sdz9", MADE_BY_GUEST)
