"""A guest that is nothing but a QEMU guest agent: this machine's kernel, and an initramfs with its package's qemu-ga.

It is up within seconds of emulation, so what a host asks of an agent can be asked of a real one. It is kept in
``~/.cache/hyperflow/agent-<digest of this file>-<kernel>/``.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.kept import kept

PORT = "org.qemu.guest_agent.0"
MODULES = ("virtio_pci", "virtio_console")
PROGRAMS = ("sh", "mount", "insmod", "sleep", "cat")
INIT = f"""#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done < /modules
while :; do
    for name in /sys/class/virtio-ports/*/name; do
        read -r said < "$name" && [ "$said" = {PORT} ] || continue
        port=${{name%/name}}
        qemu-ga --method=virtio-serial --path="/dev/${{port##*/}}"
    done
    sleep 0.2
done
"""


@dataclass(frozen=True)
class AgentGuest:
    """What to give QEMU."""

    kernel: Path
    initramfs: Path


def ensure_agent_guest() -> AgentGuest:
    """Find the guest, or make it (some seconds; qemu-guest-agent comes from the machine's package source).

    :raises RuntimeError: no kernel is installed here, or a tool failed
    """
    kernels = [path for path in Path("/boot").glob("vmlinuz-*") if _modules_of(path).is_dir()]
    if not kernels:
        raise RuntimeError("/boot: found no vmlinuz-* with its /lib/modules, expected the kernel that libguestfs needs")
    kernel = max(kernels, key=lambda path: path.stat().st_mtime)
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    folder = kept("agent", f"{recipe}-{_version_of(kernel)}", functools.partial(_build, kernel))
    return AgentGuest(folder / "vmlinuz", folder / "initramfs")


def _version_of(kernel: Path) -> str:
    return kernel.name.removeprefix("vmlinuz-")


def _modules_of(kernel: Path) -> Path:
    return Path("/lib/modules", _version_of(kernel))


def _build(kernel: Path, folder: Path) -> None:
    shutil.copy(kernel, folder / "vmlinuz")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        for name in ("bin", "proc", "sys", "dev", "run", "tmp", "var"):
            (root / name).mkdir(parents=True)
        (root / "var/run").symlink_to("/run")
        for name in PROGRAMS:
            found = shutil.which(name)
            if found is None:
                raise RuntimeError(f"{name}: not found in PATH, expected it for the agent's guest")
            _take(Path(found), root / "bin" / name, root)
        _take(_agent(Path(scratch)), root / "bin/qemu-ga", root)
        modules = _modules(_version_of(kernel))
        for module in modules:
            shutil.copy(module, root / module.name)
        (root / "modules").write_text("".join(f"/{module.name}\n" for module in modules))
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        with (folder / "initramfs").open("wb") as file:
            packed = ["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"]
            subprocess.run(packed, cwd=root, input=names.encode(), stdout=file, check=True)
    (folder / "vmlinuz").chmod(0o644)  # Ubuntu's is root's only, and libvirt's QEMU is another user


def _agent(scratch: Path) -> Path:
    """Fetch the package, and unpack it; nothing is installed here."""
    _run("apt-get", "download", "--quiet", "qemu-guest-agent", folder=scratch)
    (package,) = scratch.glob("*.deb")
    _run("dpkg-deb", "--extract", str(package), str(scratch / "agent"), folder=scratch)
    return scratch / "agent/usr/sbin/qemu-ga"


def _take(program: Path, to: Path, root: Path) -> None:
    """Copy a program and the libraries that it is linked to, which are this machine's."""
    shutil.copy(program, to)
    to.chmod(0o755)
    for line in _run("ldd", str(program), folder=root).splitlines():
        path = next((word for word in line.split() if word.startswith("/")), None)
        if path is not None and not (root / path[1:]).exists():
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / path[1:])


def _modules(version: str) -> list[Path]:
    """List the kernel's modules in the order in which they are loaded."""
    said = _run("modprobe", "--show-depends", "--all", "--set-version", version, *MODULES, folder=Path("/"))
    paths = [Path(line.split()[1]) for line in said.splitlines() if line.startswith("insmod ")]
    return list(dict.fromkeys(paths))


def _run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
