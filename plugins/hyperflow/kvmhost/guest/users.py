"""Users of the guest: accounts, hashed passwords, SSH keys, sudo; written to the files themselves.

The files are changed and not useradd run: each original is kept, and what is written reads back byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hyperflow.kvmhost.guest.backups import Changes
from hyperflow.kvmhost.guest.files import GuestFiles
from hyperflow.kvmhost.stage import Job, StageError

PASSWD, SHADOW, GROUP, GSHADOW = "/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow"
SUDOERS, SUDOERS_FOLDER = "/etc/sudoers", "/etc/sudoers.d"
SKEL = (".bashrc", ".bash_logout", ".bash_profile", ".profile")
NO_PASSWORD = "*"  # noqa: S105 - matches no password, and does not lock the account for keys as ! does without PAM
FIRST_UID, LAST_UID = 1000, 59999  # what login.defs has for people where it says nothing
SUDO = {"password": "ALL=(ALL:ALL) ALL", "nopasswd": "ALL=(ALL:ALL) NOPASSWD: ALL"}

_ID = re.compile(r"[0-9]{1,10}")  # 32 bits
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_KEY = re.compile(r"[a-z][a-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}(?: [^\x00-\x1f\x7f]*)?")
_HASH = re.compile(r"\$[a-z0-9]+\$[A-Za-z0-9./=$]+")
_INCLUDES = re.compile(rf"^[#@]includedir[ \t]+{SUDOERS_FOLDER}/?[ \t]*$", re.M)


@dataclass(frozen=True)
class User:
    """What a user is to have.

    :param password_hash: as crypt(5) has it; empty to leave the password
    :param sudo: password, nopasswd, or empty to leave it
    """

    ssh_keys: list[str] = field(default_factory=list)
    password_hash: str = ""
    sudo: str = ""


@dataclass(frozen=True)
class Account:
    """A line of /etc/passwd."""

    uid: int
    gid: int
    home: str
    shell: str


def faults(users: Mapping[str, User]) -> list[str]:
    """List what must not be written."""
    found = []
    for name, user in users.items():
        if not _NAME.fullmatch(name):
            found.append(f"users: found {name!r}, expected the name of a user")
        if user.password_hash and not _HASH.fullmatch(user.password_hash):
            found.append(f"users.{name}.password_hash: expected a password's hash as crypt(5) has it")
        found += [
            f"users.{name}.ssh_keys: found {key!r}, expected a public key" for key in user.ssh_keys if not _is_key(key)
        ]
        if user.sudo and user.sudo not in SUDO:
            found.append(f"users.{name}.sudo: found {user.sudo!r}, expected one of {', '.join(SUDO)}")
    return found


def apply(files: GuestFiles, changes: Changes, users: Mapping[str, User], job: Job) -> list[dict[str, Any]]:
    """Make and change the users; what the guest's files say of each afterwards.

    :raises StageError: a guest without these files, without sudo where sudo is asked for, or a claim that does not hold
    """
    if any(user.sudo for user in users.values()):
        _require_sudo(files)
    observed = []
    for name, user in users.items():
        created = account(_text(files, PASSWD), name) is None
        if created:
            _create(files, changes, name)
        if user.password_hash:
            changes.write(SHADOW, with_password(_text(files, SHADOW), name, user.password_hash))
        if user.ssh_keys:
            _add_keys(files, changes, name, user.ssh_keys)
        if user.sudo:
            _allow_sudo(files, changes, name, user.sudo)
        observed.append({**_read_back(files, name, user), "created": created})
        if user.sudo == "password" and not observed[-1]["password_set"]:
            job.warn(f"user {name}: may use sudo with a password, and has none")
    return observed


def account(text: str, name: str) -> Account | None:
    """Find a user in the text of /etc/passwd."""
    for line in text.splitlines():
        fields = line.split(":")
        if fields[0] == name and len(fields) == 7 and _is_id(fields[2]) and _is_id(fields[3]):
            return Account(int(fields[2]), int(fields[3]), fields[5], fields[6])
    return None


def free_id(*texts: str) -> int:
    """Find a number that neither a user nor a group has: the one after the highest of people, as useradd does."""
    numbers = (line.split(":")[2:3] for text in texts for line in text.splitlines())
    used = {int(number[0]) for number in numbers if number and _is_id(number[0])}
    after = max((number for number in used if FIRST_UID <= number <= LAST_UID), default=FIRST_UID - 1) + 1
    if after <= LAST_UID:
        return after
    free = next((number for number in range(FIRST_UID, LAST_UID + 1) if number not in used), None)
    if free is None:
        raise StageError(f"configuration.users: the guest has no free user id from {FIRST_UID} to {LAST_UID}")
    return free


def with_line(text: str, line: str) -> str:
    """Add a line to a file of accounts, before the ``+`` lines of NIS, which must be the last."""
    lines = text.splitlines()
    place = next((number for number, one in enumerate(lines) if one.startswith("+")), len(lines))
    return "\n".join([*lines[:place], line, *lines[place:]]) + "\n"


def with_password(text: str, name: str, hashed: str) -> str:
    """Set a user's hash in the text of /etc/shadow, changed today unless it is the same.

    :raises StageError: when the user has no line
    """
    lines, today = text.splitlines(), str(int(time.time()) // 86400)
    for number, line in enumerate(lines):
        fields = line.split(":")
        if fields[0] == name and len(fields) == 9:
            if fields[1] != hashed:
                lines[number] = ":".join([name, hashed, today, *fields[3:]])
            return "\n".join(lines) + "\n"
    raise StageError(f"configuration.users.{name}: found no line of this user in {SHADOW}")


def fingerprint(key: str) -> str:
    """Name a public key as ssh-keygen does.

    :raises ValueError: when it is no base64
    """
    digest = hashlib.sha256(base64.b64decode(key.split()[1], validate=True)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def _is_key(text: str) -> bool:
    if not _KEY.fullmatch(text):
        return False
    try:
        fingerprint(text)
    except ValueError:
        return False
    return True


def _create(files: GuestFiles, changes: Changes, name: str) -> None:
    passwd, group = _text(files, PASSWD), _text(files, GROUP)
    if not files.is_file(SHADOW):
        raise StageError(f"configuration.users: the guest has no {SHADOW}")
    uid = free_id(passwd, group)
    groups = (line.split(":") for line in group.splitlines())
    gid = next((int(fields[2]) for fields in groups if fields[0] == name and fields[2:3] and _is_id(fields[2])), None)
    if gid is None:
        gid = uid
        changes.write(GROUP, with_line(group, f"{name}:x:{gid}:"))
        if files.is_file(GSHADOW):
            changes.write(GSHADOW, with_line(_text(files, GSHADOW), f"{name}:!::"))
    home = f"/home/{name}"
    shell = files.first(["/bin/bash"]) or "/bin/sh"
    today = int(time.time()) // 86400
    changes.write(SHADOW, with_line(_text(files, SHADOW), f"{name}:{NO_PASSWORD}:{today}:0:99999:7:::"))
    changes.write(PASSWD, with_line(passwd, f"{name}:x:{uid}:{gid}::{home}:{shell}"))
    if files.exists(home) or files.handle.is_symlink(home):
        return
    changes.folder(home, 0o700, (uid, gid))
    for file in SKEL:
        text = files.read_text(f"/etc/skel/{file}")
        if text is not None:
            changes.write(f"{home}/{file}", text)
            files.handle.chown(uid, gid, f"{home}/{file}")


def _add_keys(files: GuestFiles, changes: Changes, name: str, keys: list[str]) -> None:
    one = _account(files, name)
    folder = f"{one.home}/.ssh"
    path = f"{folder}/authorized_keys"
    if not files.is_directory(one.home):
        raise StageError(f"configuration.users.{name}: has no home directory for SSH keys; found {one.home!r}")
    if not files.is_directory(folder):
        changes.folder(folder, 0o700, (one.uid, one.gid))
    old = files.read_text(path)
    lines = (old or "").splitlines()
    known = {word for line in lines for word in line.split()}
    new = [key for key in keys if key.split()[1] not in known]
    if new:
        changes.write(path, "\n".join([*lines, *new]) + "\n", 0o600)
    if old is None:
        files.handle.chown(one.uid, one.gid, path)


def _require_sudo(files: GuestFiles) -> None:
    if files.program("sudo") is None:
        raise StageError(
            "configuration.users: sudo is asked for, and the guest has no sudo; install it in the source VM"
        )
    if not _INCLUDES.search(files.read_text(SUDOERS) or ""):
        raise StageError(
            f"configuration.users: sudo is asked for, and {SUDOERS} in the guest reads no {SUDOERS_FOLDER}"
        )


def _allow_sudo(files: GuestFiles, changes: Changes, name: str, how: str) -> None:
    path = _sudo_file(name)
    changes.write(path, f"# by hyperflow\n{name} {SUDO[how]}\n", 0o440)
    checker = files.program("visudo")
    if checker is not None:
        files.run([checker, "-c", "-q", "-f", path])  # a file that sudo cannot read makes it refuse everybody


def _read_back(files: GuestFiles, name: str, user: User) -> dict[str, Any]:
    one = _account(files, name)
    shadow = next(
        (line.split(":") for line in _text(files, SHADOW).splitlines() if line.split(":")[0] == name), ["", ""]
    )
    if user.password_hash and shadow[1] != user.password_hash:
        raise StageError(f"configuration.users.{name}: the password does not read back")
    found = files.read_text(f"{one.home}/.ssh/authorized_keys") or ""
    there = {word for line in found.splitlines() for word in line.split()}
    if any(key.split()[1] not in there for key in user.ssh_keys):
        raise StageError(f"configuration.users.{name}: the SSH keys do not read back")
    rule = files.read_text(_sudo_file(name)) or ""
    sudo = next((how for how, text in SUDO.items() if f"{name} {text}\n" in rule), None)
    if user.sudo and sudo != user.sudo:
        raise StageError(f"configuration.users.{name}: sudo does not read back")
    return {
        "name": name,
        "uid": one.uid,
        "home": one.home,
        "shell": one.shell,
        "password_set": shadow[1].startswith("$"),
        "ssh_keys": [fingerprint(key) for key in user.ssh_keys],
        "sudo": sudo,
    }


def _account(files: GuestFiles, name: str) -> Account:
    one = account(_text(files, PASSWD), name)
    if one is None:
        raise StageError(f"configuration.users.{name}: found no such user in {PASSWD}")
    return one


def _sudo_file(name: str) -> str:
    return f"{SUDOERS_FOLDER}/hyperflow-{name}"


def _text(files: GuestFiles, path: str) -> str:
    text = files.read_text(path)
    if text is None:
        raise StageError(f"configuration.users: the guest has no {path}")
    return text
