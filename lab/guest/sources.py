"""Where the lab's guest has Debian from. How it looks does not depend on that, so its cache's key does not either."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MIRROR_VARIABLE = "HYPERFLOW_LAB_MIRROR"
WEB = ("http://", "https://")  # what debootstrap and the guest's apt have Debian from
MIRROR_LIST = "mirror+file:"  # apt's word for a file that lists mirrors, the best one first


@dataclass(frozen=True)
class Source:
    """A package source of Debian, as apt names it."""

    uri: str
    suite: str


def debian_sources(suite: str) -> list[Source]:
    """Find where this machine has a suite of Debian from, for the guest has it from there, too.

    :return: the suite itself first, then its updates; none where this machine has another distribution's packages, or
        Debian's from no server: debootstrap has a mirror of its own for that
    """
    if mirror := os.environ.get(MIRROR_VARIABLE):
        return [Source(mirror, suite)]
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\n")
    found = [line.split() for line in listed if line.endswith(" main")]
    suites = (suite, f"{suite}-updates", f"{suite}-security")
    named = [(_address(uri), each) for each in suites for uri, release, _ in found if release == each]
    sources = [Source(uri, each) for uri, each in named if uri.startswith(WEB)]
    return sources if sources and sources[0].suite == suite else []


def _address(uri: str) -> str:
    """The address of a source: of a list of mirrors its first one, empty where it has none."""
    if not uri.startswith(MIRROR_LIST):
        return uri
    try:
        mirrors = Path(urlsplit(uri).path.rstrip("/")).read_text()
    except OSError:
        return ""
    return next((word for line in mirrors.splitlines() for word in line.split()[:1] if word.startswith(WEB)), "")
