"""Where the lab's guest has its packages from, on whatever machine it is built; and what is said when it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from hyperflow.cli.__main__ import main
from hyperflow.cli.airflow_api import Refused

from lab import demo, guest, lab
from lab.guest import build, machine, sources
from lab.guest.sources import Source, debian_sources
from lab.vcenter import LabError

DEBIAN = "http://mirror.example/debian/"
SECURITY = "https://mirror.example/debian-security/"


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that takes what this machine's apt lists: address, suite and component of each source."""
    listed, program = tmp_path / "listed", tmp_path / "apt-get"
    program.write_text(f"#!/bin/sh\ncat {listed}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv(sources.MIRROR_VARIABLE, raising=False)
    return listed


def test_the_guest_comes_from_the_mirror_that_a_person_names(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt.write_text(f"{DEBIAN} bookworm main\n")
    monkeypatch.setenv(sources.MIRROR_VARIABLE, "http://other.example/debian")
    assert debian_sources("bookworm") == [Source("http://other.example/debian", "bookworm")]


def test_it_comes_from_where_this_machine_has_debian_from_the_suite_itself_first(apt: Path) -> None:
    apt.write_text(
        f"{SECURITY} bookworm-security main\n{DEBIAN} bookworm-updates main\n{DEBIAN} bookworm main\n"
        f"{DEBIAN} bookworm contrib\n{DEBIAN} trixie main\n"
    )
    suites = [(DEBIAN, "bookworm"), (DEBIAN, "bookworm-updates"), (SECURITY, "bookworm-security")]
    assert debian_sources("bookworm") == [Source(*each) for each in suites]


@pytest.mark.parametrize("form", ["mirror+file:{}/", "mirror+file://{}/", "mirror+file:{}"])
def test_of_a_list_of_mirrors_it_takes_the_first(apt: Path, tmp_path: Path, form: str) -> None:
    mirrors = tmp_path / "debian.list"
    mirrors.write_text(f"# the nearest one\n\n{DEBIAN}\tpriority:1\nhttp://far.example/debian/\n")
    apt.write_text(f"{form.format(mirrors)} bookworm main\n")
    assert debian_sources("bookworm") == [Source(DEBIAN, "bookworm")]


@pytest.mark.parametrize(
    "listed",
    [
        "",
        "http://mirror.example/ubuntu/ noble main\n",
        f"{DEBIAN} bookworm-updates main\n",
        "mirror+file:/nowhere/debian.list/ bookworm main\n",
        "cdrom:[Debian]/ bookworm main\n",
        "file:/srv/debian/ bookworm main\n",
    ],
)
def test_where_this_machine_has_no_server_with_debian_debootstrap_takes_its_own(apt: Path, listed: str) -> None:
    apt.write_text(listed)
    assert debian_sources("bookworm") == []
    commands: list[list[str]] = []
    log = type("Log", (), {"run": lambda self, command: commands.append(command)})()
    build.bootstrap(Path("/root-of-guest"), [], log)
    assert commands[0][-2:] == ["bookworm", "/root-of-guest"]


@pytest.mark.parametrize("command", [["lab", "up"], ["demo"]])
@pytest.mark.parametrize("fault", [build.BuildError, machine.ConsoleError, LabError, RuntimeError, Refused])
def test_what_keeps_the_lab_from_coming_up_is_said_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: list[str],
    fault: type[Exception],
) -> None:
    def ensure_guest(_say: object) -> Path:
        raise fault("debootstrap failed with status 1:\nE: [no] such mirror")

    monkeypatch.setenv("HYPERFLOW_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("DEMO_EXIT", "0")
    monkeypatch.setattr(guest, "ensure_guest", ensure_guest)
    monkeypatch.setattr(lab.os, "geteuid", lambda: 0)
    assert main(command) == 1
    assert capsys.readouterr().err == "debootstrap failed with status 1:\nE: [no] such mirror\n"


@pytest.mark.parametrize("command", [["lab", "up"], ["demo"]])
def test_without_root_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setattr(lab.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(lab, "reset", lambda: pytest.fail("begun"))
    monkeypatch.setattr(demo.lab, "up", lambda _say: pytest.fail("begun"))
    assert main(command) == 1
    assert "run this as root, or with sudo" in capsys.readouterr().err
