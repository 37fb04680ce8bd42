"""A guest made by somebody who means harm: its disks are looked at in the appliance, and nothing else is touched.

Three starts of the appliance for all of it: one with a disk for each kind of harm, one that fixes a guest full of it,
one that a guest's file system takes down.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kvmhost.guest import phony
from tests.kvmhost.stages import running
from tests.kvmhost.stages.test_fix import appliances, options

ROOT = Path(__file__).resolve().parents[3]
SHADOW = "root:$6$salt$hash:19000:0:99999:7:::\n"
ABSURD = 100 << 20  # bytes of a configuration file
ASKED = ("/etc/fstab", "/etc/os-release", "/etc/hostname", "/etc/crypttab", "/etc/climbing")

# Run by the host's own Python, which has guestfs: what inspection and the readers of files say of each disk.
PROGRAM = """
import json, sys
from pathlib import Path
from hyperflow.kvmhost.guest import inspection
from hyperflow.kvmhost.guest.appliance import Appliance
from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.stage import Job, StageError

def tried(function, *arguments):
    try:
        value = function(*arguments)
    except (StageError, RuntimeError) as fault:
        return f"{type(fault).__name__}: {fault}"
    return f"read {len(value)} bytes" if isinstance(value, bytes) else value

overlays, asked, told = [Path(path) for path in json.loads(sys.argv[1])], json.loads(sys.argv[2]), {}
with Appliance(overlays, Job("inspect")) as handle:
    roots = handle.inspect_os()
    for overlay, device in zip(overlays, handle.list_devices()):
        if overlay.stem.startswith("spoiled"):
            state = tried(inspection._state, handle, device)
            mounted = tried(handle.mount, device, "/")
            told[overlay.stem] = {"state": state, "mounted": mounted, "root": device in roots}
            handle.umount_all()
            continue
        facts = tried(inspection._operating_system, handle, device) if device in roots else None
        handle.mount(device, "/")
        files = GuestFiles(handle)
        said = {path: tried(files.read, path) for path in asked}
        changes = Changes(files, True, "/var/backups/hyperflow/now")
        written = {path: tried(changes.write, path, "new\\n") for path in asked if path[-1] in "bg"}
        names = tried(files.names, "/etc/systemd/network")
        told[overlay.stem] = {"facts": facts, "said": said, "written": written, "names": names}
        handle.umount_all()
print(json.dumps(told))
"""


def special(path: Path, make: Callable[[Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


def absurd(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(ABSURD)


def disk(path: Path, number: int, files: dict[str, Any], links: dict[str, str] | None = None) -> Path:
    """A Linux with some files made otherwise: text, bytes, or by a function."""
    tree = path.with_suffix(".tree")
    for name, make in files.items():
        if callable(make):
            special(tree / name, make)
    plain = {name: content for name, content in files.items() if not callable(content)}
    taken = {*files, *(links or {})}
    usual = {name: text for name, text in phony.LINUX.items() if not taken & {name, name.split("/")[0]}}
    secret = tree / "etc" / "shadow"
    special(secret, lambda place: place.write_text(SHADOW))
    secret.chmod(0o640)
    return phony.disk(path, {**usual, **plain}, links, uuid=phony.UUID.replace("6f1a", f"{0x7000 + number:04x}"))


def debugfs(disk: Path, request: str) -> str:
    """Have debugfs do this to the file system; what it says."""
    command = ["debugfs", "-w", "-R", request, str(disk)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def scribble(disk: Path, block: int) -> None:
    """Fill a block of the file system with what no file system writes."""
    (size,) = re.findall(r"^Block size:\s+(\d+)", debugfs(disk, "stats"), re.MULTILINE)
    with disk.open("r+b") as file:
        file.seek(block * int(size))
        file.write(b"\xa5" * int(size))


def spoiled_superblock(path: Path) -> Path:
    """A file system that says it has 2^48 blocks, on a disk of 256 MiB."""
    debugfs(disk(path, 10, {}), f"set_super_value blocks_count {1 << 48}")
    return path


def spoiled_journal(path: Path) -> Path:
    """A file system whose journal has to be replayed and is noise."""
    first = debugfs(disk(path, 11, {}), "bmap <8> 0")
    debugfs(path, "feature needs_recovery")
    scribble(path, int(first))
    return path


def spoiled_inodes(path: Path) -> Path:
    """A file system whose root is noise, and that asks the kernel to panic when it sees an error."""
    (block,) = re.findall(r"located at block (\d+)", debugfs(disk(path, 12, {}), "imap <2>"))
    subprocess.run(["tune2fs", "-e", "panic", str(path)], check=True, capture_output=True)
    scribble(path, int(block))
    return path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What was said of each hostile disk, all in one appliance."""
    folder = tmp_path_factory.mktemp("hostile")
    every = ("etc/fstab", "etc/os-release", "etc/hostname")
    climbing = "/".join([".."] * 40) + "/etc/shadow"
    shadows = {"etc/fstab": "/etc/shadow", "etc/hostname": "/etc/shadow", "etc/crypttab": "shadow"}
    odd = b'ID="$(reboot)"\nVERSION_ID="../../12"\nPRETTY_NAME="a\x1b[2Jb\xe2\x80\xae`id`\xfc"\n'
    disks = {
        "spoiled-superblock": spoiled_superblock(folder / "spoiled-superblock.raw"),
        "spoiled-journal": spoiled_journal(folder / "spoiled-journal.raw"),
        "fifo": disk(folder / "fifo.raw", 0, dict.fromkeys(every, os.mkfifo)),
        "absurd": disk(folder / "absurd.raw", 1, dict.fromkeys(every, absurd)),
        "shadow": disk(folder / "shadow.raw", 2, {}, {**shadows, "etc/climbing": climbing}),
        "odd": disk(
            folder / "odd.raw",
            3,
            {
                "etc/os-release": odd,
                "etc/hostname": b"../../etc\x1b[31m\xff\n",
                "etc/systemd/network/a\nb.link": "[Link]\nName=x\n",
                "etc/systemd/network/-rf \u202e.link": "[Link]\nName=y\n",
            },
            {"etc/crypttab": "crypttab", "etc/climbing": "/nowhere"},
        ),
    }
    overlays = []
    for name, path in disks.items():
        overlays.append(path.with_name(f"{name}.qcow2"))
        command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(path), str(overlays[-1])]
        subprocess.run(command, check=True)
    before = {path: phony.digest(path) for path in disks.values()}
    done = subprocess.run(
        [running.PYTHON, "-c", PROGRAM, json.dumps(list(map(str, overlays))), json.dumps(ASKED)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: phony.digest(path) for path in disks.values()} == before, "the staged files are never written to"
    answer: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    for overlay in overlays[2:]:
        answer[overlay.stem]["shadow"] = phony.read(overlay, "/etc/shadow").decode()
    return answer


def test_a_fifo_in_place_of_a_configuration_is_as_good_as_none(told: dict[str, dict[str, Any]]) -> None:
    assert {told["fifo"]["said"][path] for path in ("/etc/fstab", "/etc/os-release", "/etc/hostname")} == {None}
    assert "no regular file, expected one or nothing" in told["fifo"]["written"]["/etc/fstab"]


def test_a_configuration_of_absurd_size_is_refused_before_it_is_read(told: dict[str, dict[str, Any]]) -> None:
    for path in ("/etc/fstab", "/etc/os-release"):
        assert told["absurd"]["said"][path] == (
            f"TooLarge: {path} in the guest: found {ABSURD} bytes, expected at most 4194304"
        )


@pytest.mark.parametrize("path", ["/etc/fstab", "/etc/crypttab", "/etc/climbing"])
def test_a_link_to_a_secret_is_neither_read_nor_written_for_a_configuration(
    told: dict[str, dict[str, Any]], path: str
) -> None:
    for what in ("said", "written"):
        assert f"{path} in the guest: found a link to /etc/shadow" in told["shadow"][what][path]
    assert told["shadow"]["shadow"] == SHADOW


def test_a_first_line_of_a_secret_does_not_pass_for_a_hostname(told: dict[str, dict[str, Any]]) -> None:
    assert told["shadow"]["facts"]["hostname"] is None
    assert "$6$" not in json.dumps({**told["shadow"], "shadow": ""})


def test_odd_words_of_a_guest_are_data(told: dict[str, dict[str, Any]]) -> None:
    facts = told["odd"]["facts"]
    assert facts["type"] == "linux"
    assert facts["hostname"] is None
    assert told["odd"]["names"] == ["-rf \u202e.link", "a\nb.link"]
    for what in ("said", "written"):
        assert "/etc/crypttab: Too many levels of symbolic links" in told["odd"][what]["/etc/crypttab"]
    assert "no regular file, expected one or nothing" in told["odd"]["written"]["/etc/climbing"], "it leads nowhere"


@pytest.mark.parametrize("spoiled", ["spoiled-superblock", "spoiled-journal"])
def test_a_spoiled_file_system_is_not_mounted_and_the_disks_beside_it_are_read(
    told: dict[str, dict[str, Any]], spoiled: str
) -> None:
    assert not told[spoiled]["root"]
    assert told[spoiled]["mounted"].startswith("RuntimeError: mount"), told[spoiled]
    assert told["odd"]["facts"]["type"] == "linux"


def test_a_file_system_that_takes_the_kernel_down_takes_the_appliance_only(tmp_path: Path) -> None:
    source = spoiled_inodes(tmp_path / "guest.raw")
    before = phony.digest(source)
    result = running.run("fix", options(tmp_path, [source]))
    assert result["exit_status"] == 1
    assert "libguestfs' appliance ended in the middle of its work" in result["error"]["message"]
    assert phony.digest(source) == before
    assert appliances(tmp_path / "work") == []
    assert not (tmp_path / "work/fix").exists()


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A guest whose /boot is its root and whose folders lead astray, fixed."""
    folder = tmp_path_factory.mktemp("fixed")
    moved = {name.removeprefix("boot/"): text for name, text in phony.LINUX.items() if name.startswith("boot/")}
    grub = phony.GRUB_CFG.replace("Phony", "Gr\udcfc\u202e\x1b[2J").encode("utf-8", "surrogateescape")
    files = {
        **moved,
        "grub/grub.cfg": grub,
        "loader/entries/evil\nname.conf": "title x\nlinux /vmlinuz-6.1.0\noptions root=/dev/sda ro\n",
        "etc/network/interfaces": "auto ens192\niface ens192 inet dhcp\n",
        "vmlinuz-6.1\n$(id)": "no kernel",
    }
    links = {"boot": "/", "var/backups": "../../../../../../etc", "etc/systemd/network": "/var/elsewhere"}
    (folder / "guest.tree/var/elsewhere").mkdir(parents=True)
    source = disk(folder / "guest.raw", 9, files, links)
    before = phony.digest(source)
    result = running.run("fix", options(folder, [source]))
    assert phony.digest(source) == before
    return result


def test_a_guest_whose_links_lead_astray_is_fixed_inside_itself(fixed: dict[str, Any]) -> None:
    assert fixed["succeeded"], fixed["log"]
    overlay = Path(fixed["observed"]["overlays"]["disk-0"])
    assert b"root=UUID=" in phony.read(overlay, "/grub/grub.cfg")
    assert b"Name=ens192" in phony.read(overlay, "/var/elsewhere/10-hyperflow-ens192.link")
    assert phony.read(overlay, "/etc/shadow").decode() == SHADOW
    kept = {one["path"]: one["backup"] for one in fixed["observed"]["changed_files"]}
    assert "/loader/entries/evil\nname.conf" in kept
    assert phony.read(overlay, kept["/etc/fstab"].replace("/var/backups", "/etc")) == phony.LINUX["etc/fstab"].encode()


def test_what_is_told_of_a_hostile_guest_is_unicode_in_lines_of_its_own(fixed: dict[str, Any]) -> None:
    json.dumps(fixed["observed"], ensure_ascii=False).encode("utf-8")
    titles = {entry["title"] for entry in fixed["observed"]["boot_entries"]}
    assert "Gr\\xfc\u202e\x1b[2J" in titles
    assert "\x1b" not in fixed["log"]
    assert "\u202e" not in fixed["log"]
