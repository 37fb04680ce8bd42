"""The lab's KVM host: this machine, reached by an sshd of its own on loopback, with libvirt and an isolated network.

What is already there is used and left alone: a libvirt that runs as the machine's service, a network of that name. So
a second host, in a state folder of its own, is one more sshd.
What the lab starts is recorded before it is used, and ended by that record.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import processes

NETWORK = "hyperflow-lab"
BRIDGE = "hyperflow0"
URI = "qemu:///system"
VIRTLOGD_SOCKET = Path("/run/libvirt/virtlogd-sock")
START_LIMIT = 120.0  # seconds; libvirtd's first start took 2 s where it was measured
RECORD = "kvmhost.json"


@dataclass(frozen=True)
class KvmHost:
    """A host as an SSH connection needs it, and what of it is the lab's own.

    :param host_key: ``ssh-ed25519 AAAA...``
    :param key_file: the private key that ``ssh_user`` is let in with
    :param networks: libvirt networks, by name, and whether each is active
    :param started_by_us: ``servers`` (records of :class:`processes.Server`) and ``networks`` (names)
    """

    ssh_host: str
    ssh_port: int
    ssh_user: str
    host_key: str
    key_file: str
    libvirt_uri: str = URI
    networks: dict[str, bool] = field(default_factory=dict)
    started_by_us: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """The network that the lab's domains are plugged into."""
        return next(iter(self.networks))


def start(state: Path, port: int | None = None) -> KvmHost:
    """Start what is not running yet, and say how the host is reached.

    :param state: a folder for keys, configuration and records
    :param port: of sshd; None for the one of the last start, or a free one
    :raises RuntimeError: naming the program that is missing or did not come up, and its log
    """
    if os.geteuid() != 0:
        raise RuntimeError("the lab's KVM host needs root: libvirt makes a bridge, and images belong to root")
    there = running(state)
    if there is not None:
        return there
    port = port or _last_port(state)
    stop(state)  # what a killed start left
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    servers: list[processes.Server] = []
    networks: list[str] = []
    host = _describe(state, port or processes.free_port())
    try:
        _start_sshd(state, host, servers)
        _record(state, host, servers, networks)
        _start_libvirt(state, servers)
        _record(state, host, servers, networks)
        active = _start_network(state, networks)
        return _record(state, host, servers, networks, {NETWORK: active})
    except BaseException:
        _record(state, host, servers, networks)
        stop(state)
        raise


def stop(state: Path) -> None:
    """End what :func:`start` started, and nothing else."""
    host = _load(state)
    if host is None:
        return
    servers = [processes.Server(**one) for one in host.started_by_us.get("servers", [])]
    for network in host.started_by_us.get("networks", []):
        for command in ("net-destroy", "net-undefine"):
            _virsh(command, network, check=False)
    # Connections of sshd are sessions of their own, so they are not in its process group.
    connections = [child for one in servers if one.name == "sshd" and one.is_alive() for child in _children(one.pid)]
    processes.end([*servers, *connections])
    (state / RECORD).unlink(missing_ok=True)


def running(state: Path) -> KvmHost | None:
    """The host when all of it runs, else None."""
    host = _load(state)
    if host is None or not host.networks or not all(status(state).values()):
        return None
    return host


def status(state: Path) -> dict[str, bool]:
    """Tell which parts run: ``sshd``, ``libvirt`` and ``network`` (defined, and active if it was when it started)."""
    host = _load(state)
    if host is None:
        return {"sshd": False, "libvirt": False, "network": False}
    servers = [processes.Server(**one) for one in host.started_by_us.get("servers", [])]
    libvirt = _libvirt_answers()
    there = _networks() if libvirt else {}
    return {
        "sshd": any(one.name == "sshd" and one.is_alive() for one in servers),
        "libvirt": libvirt,
        "network": bool(host.networks) and all(there.get(name) == active for name, active in host.networks.items()),
    }


def undefine_domains_below(host: KvmHost, folder: Path) -> list[str]:
    """Undefine every domain that has a disk below ``folder``; running ones are switched off first.

    :return: their names
    """
    removed = domains_below(folder, host.libvirt_uri)
    for uuid in removed:
        _virsh("destroy", uuid, check=False, uri=host.libvirt_uri)
        _virsh("undefine", "--nvram", "--managed-save", "--snapshots-metadata", uuid, uri=host.libvirt_uri)
    return list(removed.values())


def domains_below(folder: Path, uri: str = URI) -> dict[str, str]:
    """Find the domains that have a disk below a folder: UUID -> name."""
    found = {}
    for uuid in _virsh("list", "--all", "--uuid", uri=uri).split():
        description = _virsh("dumpxml", "--inactive", uuid, check=False, uri=uri)
        if not description:  # somebody else's, who has undefined it since they were listed
            continue
        domain = ET.fromstring(description)  # noqa: S314 - libvirt's own
        sources = [Path(source.get("file", "/")) for source in domain.findall("devices/disk/source")]
        if any(folder.resolve() in source.parents for source in sources):
            found[uuid] = domain.findtext("name") or uuid
    return found


def _describe(state: Path, port: int) -> KvmHost:
    """Make the keys, once, and say how the host will be reached."""
    for name in ("host_key", "user_key"):
        if not (state / name).exists():
            command = [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"hyperflow-lab {name}",
                "-f",
                str(state / name),
            ]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    key = " ".join((state / "host_key.pub").read_text().split()[:2])
    return KvmHost(ssh_host="127.0.0.1", ssh_port=port, ssh_user="root", host_key=key, key_file=str(state / "user_key"))


def _start_sshd(state: Path, host: KvmHost, servers: list[processes.Server]) -> None:
    shutil.copyfile(state / "user_key.pub", state / "authorized_keys")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's empty directory; without systemd nobody makes it
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": host.ssh_port,
        "HostKey": state / "host_key",
        "AuthorizedKeysFile": state / "authorized_keys",
        "PidFile": state / "sshd.pid",
        "AllowUsers": host.ssh_user,
        "PermitRootLogin": "prohibit-password",
        "PubkeyAuthentication": "yes",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "StrictModes": "no",  # the state folder may lie below /tmp; its files are readable by root only
        "UsePAM": "yes" if _root_is_locked() else "no",  # without PAM sshd lets no account in that passwd -l locked
        "MaxStartups": "100:30:200",  # a wave of migrations connects at once
        "MaxSessions": "100",
        "X11Forwarding": "no",
        "Subsystem": "sftp internal-sftp",
    }
    (state / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    log = state / "sshd.log"
    command = [_program("sshd", "openssh-server"), "-D", "-e", "-f", str(state / "sshd_config")]
    servers.append(processes.start("sshd", command, log, dict(os.environ)))
    limit = time.monotonic() + START_LIMIT
    while not _answers(host.ssh_port):
        if not servers[-1].is_alive() or time.monotonic() > limit:
            raise RuntimeError(f"sshd did not come up; see {log}: {log.read_text()[-500:]}")
        time.sleep(0.1)


def _start_libvirt(state: Path, servers: list[processes.Server]) -> None:
    """Start virtlogd and libvirtd where no libvirt answers yet."""
    if _libvirt_answers():
        return
    environment = {**os.environ, "LC_ALL": "C"}
    settings = state / "libvirtd.conf"
    settings.write_text('auth_unix_rw = "none"\nunix_sock_rw_perms = "0700"\nunix_sock_ro_perms = "0700"\n')
    if not _accepts(VIRTLOGD_SOCKET):
        command = [_program("virtlogd", "libvirt-daemon-system"), "-p", str(state / "virtlogd.pid")]
        servers.append(processes.start("virtlogd", command, state / "virtlogd.log", environment))
    command = [_program("libvirtd", "libvirt-daemon-system"), "-f", str(settings), "-p", str(state / "libvirtd.pid")]
    log = state / "libvirtd.log"
    servers.append(processes.start("libvirtd", command, log, environment))
    limit = time.monotonic() + START_LIMIT
    while not _libvirt_answers():
        if not servers[-1].is_alive() or time.monotonic() > limit:
            raise RuntimeError(f"libvirtd did not come up; see {log}: {log.read_text()[-500:]}")
        time.sleep(0.2)


def _start_network(state: Path, networks: list[str]) -> bool:
    """Define and start the isolated network: a bridge without an address, so neither DHCP nor a way out.

    :return: whether it is active; on a machine where no bridge can be made it stays defined, which is enough to
        define domains
    """
    there = _networks()
    if NETWORK not in there:
        network = ET.Element("network")
        ET.SubElement(network, "name").text = NETWORK
        ET.SubElement(network, "bridge", name=BRIDGE, stp="off")
        path = state / "network.xml"
        path.write_text(ET.tostring(network, encoding="unicode"))
        _virsh("net-define", str(path))
        networks.append(NETWORK)
    if not there.get(NETWORK):
        _virsh("net-start", NETWORK, check=False)
    return _networks()[NETWORK]


def _networks() -> dict[str, bool]:
    active = _virsh("net-list", "--name").split()
    return {name: name in active for name in _virsh("net-list", "--all", "--name").split()}


def _virsh(*arguments: str, check: bool = True, uri: str = URI) -> str:
    done = subprocess.run(
        [_program("virsh", "libvirt-clients"), "--quiet", "--connect", uri, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "LC_ALL": "C"},
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"virsh {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def _libvirt_answers() -> bool:
    command = [_program("virsh", "libvirt-clients"), "--quiet", "--connect", URI, "uri"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    return done.returncode == 0


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def _answers(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def _root_is_locked() -> bool:
    entries = Path("/etc/shadow").read_text().splitlines()
    return any(line.startswith("root:!") for line in entries)


def _program(name: str, package: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise RuntimeError(f"no {name} on this machine; install {package} (lab/install-packages)")
    return path


def _children(pid: int) -> list[processes.Server]:
    """The connections of an sshd: its children, as servers that can be ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(processes.Server("connection", int(path.parent.name), int(fields[19])))
    return found


def _last_port(state: Path) -> int | None:
    """The port of the last start: connections that were made for it stay good."""
    path = state / "sshd_config"
    if not path.exists():
        return None
    ports = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("Port ")]
    return int(ports[0]) if ports and not _answers(int(ports[0])) else None


def _record(
    state: Path,
    host: KvmHost,
    servers: list[processes.Server],
    networks: list[str],
    active: dict[str, bool] | None = None,
) -> KvmHost:
    started = {"servers": [asdict(server) for server in servers], "networks": networks}
    host = KvmHost(**{**asdict(host), "networks": active or {}, "started_by_us": started})
    path = state / RECORD
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(host), indent=2) + "\n")
    return host


def _load(state: Path) -> KvmHost | None:
    path = state / RECORD
    return KvmHost(**json.loads(path.read_text())) if path.exists() else None
