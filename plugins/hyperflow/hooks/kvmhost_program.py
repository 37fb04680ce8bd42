"""Packs the data plane into the one file that is sent to a KVM host."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent  # plugins/hyperflow
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip file knows: equal sources give equal bytes
# The host's Python is looked at before anything that an older one could not even read.
MAIN = b"""import sys
if sys.version_info < (3, 9):
    sys.exit("python: found %d.%d, expected 3.9 or newer" % sys.version_info[:2])
from hyperflow.kvmhost.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Program:
    """The data plane as one file.

    :param content: a zip file that Python runs
    :param sha256: its digest, 64 lowercase hex digits
    """

    content: bytes
    sha256: str

    @property
    def name(self) -> str:
        """The file's name on a host; another content has another name, so a running job keeps its own."""
        return f"hyperflow-kvmhost-{self.sha256[:16]}.pyz"


@functools.cache
def pack() -> Program:
    """Pack ``hyperflow.kvmhost`` as it lies on disk; the same sources give the same bytes on every machine."""
    members = {"__main__.py": MAIN, "hyperflow/__init__.py": (PACKAGE / "__init__.py").read_bytes()}
    for path in (PACKAGE / "kvmhost").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            members[f"hyperflow/{path.relative_to(PACKAGE)}"] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), members[name])
    content = buffer.getvalue()
    return Program(content, hashlib.sha256(content).hexdigest())
