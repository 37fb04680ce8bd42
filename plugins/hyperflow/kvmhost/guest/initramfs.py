"""The initramfs of every kernel: virtio drivers put in by the guest's own tools, then read back from the image."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.stage import Job, StageError

MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net")
TO_BOOT = ("virtio_pci", "virtio_blk")  # without them the root file system is not found
BUILT_IN = "built-in"

IMAGES = ("/boot/initrd.img-{}", "/boot/initramfs-{}.img", "/boot/initrd-{}")  # Debian, RHEL and Fedora, SUSE
DEBIAN_MODULES = "/etc/initramfs-tools/modules"
DEBIAN_CONFIG = "/etc/initramfs-tools/initramfs.conf"
DEBIAN_CONFIG_FOLDER = "/etc/initramfs-tools/conf.d"
DEBIAN_OVERRIDE = f"{DEBIAN_CONFIG_FOLDER}/zz-hyperflow"
DEFAULT_SETTING = "most"  # of MODULES=
DRACUT_CONFIG = "/etc/dracut.conf.d/90-hyperflow.conf"
MODULE_INDEX_LIMIT = 16 * 1024 * 1024  # bytes of modules.dep; Debian's has 600 kB

# Kernels are built in parallel, as many as there are processors: under TCG most of the time is one processor's.
# The list of arguments comes from a file, separated by zero bytes.
PARALLEL = 'list=$1; count=$2; shift 2; exec xargs -0 -a "$list" -n "$count" -P "$(nproc)" "$@"'
# lsinitramfs of Debian and lsinitrd of dracut; one list after another, each behind its name.
IMAGE = "//image "
LIST = f'for image in "$@"; do printf "\\n{IMAGE}%s\\n" "$image"; {{}} "$image" || exit 1; done'

_KERNEL = re.compile(r"vmlinuz-([0-9][^/\s]*)")
_VERSION = re.compile(r"(\d+)(?:\.(\d+))?")
_RHEL_7 = re.compile(r"3\.10\.0-(\d+)\b")
_NOT_FOR_BOOT = re.compile(r"rescue|kdump|\.old$|\.bak$|\.dpkg-")
_MODULE = re.compile(r"(?:^|/|\s)([A-Za-z0-9_-]+)\.ko(?:\.(?:gz|xz|zst|bz2|lzma))?$")
_MODULES_SETTING = re.compile(r"^[ \t]*(?:export[ \t]+)?MODULES=[\"']?(\w+)", re.M)
_LINE = re.compile(r"[^\n]+")
_RESUME = re.compile(r"^(RESUME=)(/dev/\S+)", re.M)


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted.

    :param initramfs: None where it has none
    :param builtin: virtio drivers that are part of the kernel itself
    :param modules: virtio drivers that it has as modules
    """

    version: str
    vmlinuz: str
    initramfs: str | None
    builtin: tuple[str, ...]
    modules: tuple[str, ...]

    def lacks(self, names: Sequence[str]) -> list[str]:
        """Those of some drivers that the kernel does not have at all."""
        return [name for name in names if name not in self.builtin and name not in self.modules]

    def speaks_virtio_1(self) -> bool:
        """Whether its drivers are of virtio 1.0, by its version: behind a PCI Express port QEMU offers nothing older.

        It came with Linux 4.0, and Red Hat gave it to RHEL 7.2.
        """
        red_hat, version = _RHEL_7.match(self.version), _VERSION.match(self.version)
        if red_hat:
            return int(red_hat[1]) >= 327
        return version is not None and (int(version[1]), int(version[2] or 0)) >= (4, 0)


@dataclass(frozen=True)
class Image:
    """What an initramfs was seen to contain.

    :param modules: virtio drivers, with ``_`` for ``-``
    :param links: names of the .link files in it, without their folders
    :param count: of all paths in it
    """

    path: str
    modules: frozenset[str]
    links: frozenset[str]
    count: int

    def virtio_modules(self) -> list[str]:
        """The virtio drivers in it."""
        return sorted(self.modules)


def kernels(files: GuestFiles, job: Job) -> list[Kernel]:
    """Find the kernels in /boot that have modules, in the order of their names."""
    found = []
    for name in files.names("/boot", _KERNEL.pattern):
        version = name[len("vmlinuz-") :]
        if _NOT_FOR_BOOT.search(version):
            continue
        folder = next(
            (one for one in (f"/lib/modules/{version}", f"/usr/lib/modules/{version}") if files.is_directory(one)), ""
        )
        if not folder:
            job.warn(f"kernel {version}: found no modules of it, so nothing is done for it")
            continue
        builtin = module_names(files.read_text(f"{folder}/modules.builtin", MODULE_INDEX_LIMIT) or "")
        index = files.read_text(f"{folder}/modules.dep", MODULE_INDEX_LIMIT) or ""
        modules = module_names("\n".join(line.split(":", 1)[0] for line in index.split("\n")))
        image = files.first([pattern.format(version) for pattern in IMAGES])
        found.append(
            Kernel(
                version,
                f"/boot/{name}",
                image,
                tuple(one for one in MODULES if one in builtin),
                tuple(one for one in MODULES if one in modules),
            )
        )
    return found


def module_names(listing: str) -> frozenset[str]:
    """The names of the kernel modules in a listing of paths, with ``_`` for ``-`` as the kernel has them."""
    matches = (_MODULE.search(line.rstrip()) for line in listing.split("\n"))
    return frozenset(match[1].replace("-", "_") for match in matches if match)


def tool(files: GuestFiles) -> str:
    """Find which program makes the guest's initramfs: update-initramfs or dracut.

    :raises StageError: when it is another
    """
    for name in ("update-initramfs", "dracut"):
        if files.program(name):
            return name
    raise StageError(
        "the guest has neither update-initramfs nor dracut, so its initramfs cannot be given virtio drivers; "
        "put virtio_pci and virtio_blk into it on the source VM, and run with regen_initramfs: false"
    )


def prepare(
    files: GuestFiles,
    changes: Changes,
    program: str,
    links: Sequence[str],
    uuid_name: Callable[[str], str | None],
) -> None:
    """Write the configuration that makes this rebuild, and every later one of the guest, take virtio in.

    :param links: .link files of systemd that udev needs as soon as it sees the interface
    :param uuid_name: gives the UUID name of a device that the configuration resumes from
    """
    if program == "dracut":
        changes.write(DRACUT_CONFIG, dracut_config(links))
        return
    changes.write(DEBIAN_MODULES, add_modules(files.read_text(DEBIAN_MODULES) or "", MODULES))
    configs = [
        DEBIAN_CONFIG,
        *(f"{DEBIAN_CONFIG_FOLDER}/{name}" for name in files.names(DEBIAN_CONFIG_FOLDER, r"[\w.-]+")),
    ]
    setting = DEFAULT_SETTING
    for path in configs:
        text = files.read_text(path)
        if text is None:
            continue
        setting = modules_setting([text], setting)
        new = _RESUME.sub(lambda match: match[1] + (uuid_name(match[2]) or match[2]), text)
        if new != text:
            changes.write(path, new)
    if setting == "dep":
        # dep looks at the machine that it runs on, which is the appliance
        changes.write(
            DEBIAN_OVERRIDE, "# by hyperflow: dep would take the drivers of the machine it runs on\nMODULES=most\n"
        )


def add_modules(text: str, names: Iterable[str]) -> str:
    """Add modules to /etc/initramfs-tools/modules, where they are not in it already."""
    there = {
        line.split("#", 1)[0].split()[0].replace("-", "_") for line in text.split("\n") if line.split("#", 1)[0].split()
    }
    missing = [name for name in names if name not in there]
    if not missing:
        return text
    separator = "" if not text or text.endswith("\n") else "\n"
    return (
        text
        + separator
        + "# by hyperflow: drivers of KVM's disks and network\n"
        + "".join(f"{name}\n" for name in missing)
    )


def modules_setting(texts: Iterable[str], setting: str = DEFAULT_SETTING) -> str:
    """What MODULES= is in the end, the files read in the order in which mkinitramfs reads them.

    :param setting: what it is before these files
    """
    for text in texts:
        for match in _MODULES_SETTING.finditer(text):
            setting = match[1]
    return setting


def dracut_config(links: Sequence[str]) -> str:
    """Write dracut's configuration: drivers, and the files that name the interfaces."""
    lines = ["# by hyperflow: drivers of KVM's disks and network", f'add_drivers+=" {" ".join(MODULES)} "']
    if links:
        lines.append(f'install_items+=" {" ".join(links)} "')
    return "\n".join(lines) + "\n"


def rebuild(files: GuestFiles, changes: Changes, program: str, found: Sequence[Kernel], job: Job) -> None:
    """Make the initramfs of each kernel anew, each once; nothing where no kernel has one."""
    images = [kernel for kernel in found if kernel.initramfs is not None]
    if not images:
        return  # xargs would run the program once without a kernel
    if program == "update-initramfs":
        arguments, count, command = [kernel.version for kernel in images], 1, ["update-initramfs", "-u", "-k"]
    else:
        arguments = [part for kernel in images for part in (str(kernel.initramfs), kernel.version)]
        # host-only as the guest has it configured: virt-v2v does the same, and the drivers are forced
        count, command = 2, ["dracut", "--force", "--add-drivers", " ".join(MODULES)]
    listing = files.handle.mkdtemp("/tmp/hyperflow-XXXXXX")  # noqa: S108 - the guest's; mkdtemp is what makes it safe
    files.handle.write(f"{listing}/arguments", "".join(f"{one}\0" for one in arguments).encode())
    said = files.run(["/bin/sh", "-c", PARALLEL, "sh", f"{listing}/arguments", str(count), *command])
    files.handle.rm_rf(listing)
    for line in said.splitlines()[-20:]:
        job.log(line)
    for kernel in images:
        changes.regenerated(str(kernel.initramfs))


def read_images(files: GuestFiles, program: str, paths: Sequence[str]) -> dict[str, Image]:
    """List initramfs images by the guest's lsinitramfs or lsinitrd.

    :raises StageError: when one cannot be read
    """
    if not paths:
        return {}
    lister = "lsinitramfs" if program == "update-initramfs" else "lsinitrd"
    said = files.run(["/bin/sh", "-c", LIST.format(lister), "sh", *paths])
    return {path: image for path, image in _images(said) if path in paths}


def _images(said: str) -> Iterator[tuple[str, Image]]:
    """Read lists of images, line by line: 64 MiB of short paths, all kept, would be gigabytes."""
    modules: set[str] = set()
    links: set[str] = set()
    path, count = "", 0
    for match in _LINE.finditer(said):
        line = match[0]
        if line.startswith(IMAGE):
            yield path, Image(path, frozenset(modules), frozenset(links), count)
            path, modules, links, count = line[len(IMAGE) :], set(), set(), 0
            continue
        # lsinitrd prints ls -l: the path is the last word, in front of an arrow where it is a link
        name = line.split(" -> ")[0].split(" ")[-1]
        module = _MODULE.search(name.rstrip())
        if module and module[1].startswith("virtio"):
            modules.add(module[1].replace("-", "_"))
        elif name.endswith(".link"):
            links.add(posixpath.basename(name))
        count += 1
    yield path, Image(path, frozenset(modules), frozenset(links), count)


def faults(found: Sequence[Kernel], images: dict[str, Image], links: Sequence[str], required: bool) -> list[str]:
    """Compare what was read back with what a boot on KVM needs.

    :param links: files that name interfaces; a rule of an udev without .link files is not demanded, for that udev obeys
        it again when the root file system is there
    :param required: whether drivers that are not needed to find the root are demanded as well
    """
    wrong = []
    for kernel in found:
        lacks = kernel.lacks(TO_BOOT)
        if lacks:
            continue  # a kernel that cannot run on virtio at all; the caller warns of it
        if kernel.initramfs is None:
            missing = [name for name in TO_BOOT if name not in kernel.builtin]
            if missing:
                wrong.append(f"kernel {kernel.version}: found no initramfs, expected one with {', '.join(missing)}")
            continue
        image = images.get(kernel.initramfs)
        if image is None:
            wrong.append(f"{kernel.initramfs}: was not listed")
            continue
        demanded = kernel.modules if required else tuple(name for name in kernel.modules if name in TO_BOOT)
        missing = [name for name in demanded if name not in image.modules]
        if missing:
            wrong.append(f"{kernel.initramfs}: found no {', '.join(missing)} in it")
        if "virtio_net" in image.modules and required:
            named = [link for link in links if link.endswith(".link")]
            lost = [link for link in named if posixpath.basename(link) not in image.links]
            if lost:  # udev would rename the interface before the root file system with the link is there
                wrong.append(f"{kernel.initramfs}: found virtio_net, but not {', '.join(lost)}")
    return wrong


def as_json(kernel: Kernel, images: dict[str, Image]) -> dict[str, Any]:
    """A kernel and its image for a result; drivers in the kernel itself count and are named apart."""
    image = images.get(kernel.initramfs or "")
    return {
        "path": kernel.initramfs,
        "kernel": kernel.version,
        "virtio_modules": image.virtio_modules() if image else [],
        "built_in": list(kernel.builtin),
        "links": sorted(image.links) if image else [],
        "files": image.count if image else 0,
    }
