"""Reading an image through qemu-nbd: a server that answers nothing keeps no stage for ever."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from hyperflow.errors.catalogue import find
from hyperflow.kvmhost.stage import TryAgain

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 60.0  # seconds until a test gives up

# In place of qemu-nbd: listens, lets everybody in, says nothing, and heeds no SIGTERM.
SILENT = """#!/usr/bin/python3
import signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
path = next(one for one in sys.argv if one.startswith("--socket=")).partition("=")[2]
with socket.socket(socket.AF_UNIX) as server:
    server.bind(path)
    server.listen()
    while True:
        signal.pause()
"""
# Run by the host's own Python, which has libnbd.
PROGRAM = """
import json, sys
from pathlib import Path
from hyperflow.kvmhost import processes, watchdog
from hyperflow.kvmhost.images import nbd_reader
from hyperflow.kvmhost.stage import StageError

nbd_reader.SILENCE, watchdog.LOOK, nbd_reader.END_SECONDS = 1.0, 0.1, 0.5
if sys.argv[2] == "read":
    try:
        nbd_reader.read_content(nbd_reader.describe(Path(sys.argv[1]), "raw"), Path(sys.argv[1]).parent, print)
    except StageError as fault:
        told = {"kind": fault.kind, "message": str(fault)}
else:
    with nbd_reader.serve(nbd_reader.describe(Path(sys.argv[1]), "raw"), 1) as (path, _):
        while not Path(path).exists():
            pass
    told = {}
print(json.dumps({**told, "left": processes.children("")}))
"""


def answer(folder: Path, what: str) -> dict[str, object]:
    (folder / "qemu-nbd").write_text(SILENT)
    (folder / "qemu-nbd").chmod(0o755)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", PROGRAM, str(folder / "disk.raw"), what],
        env={**os.environ, "PYTHONPATH": str(ROOT / "plugins"), "PATH": f"{folder}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(told, dict)
    return told


def test_a_server_that_answers_nothing_is_ended_and_may_be_tried_again(tmp_path: Path) -> None:
    told = answer(tmp_path, "read")

    assert told["message"] == f"{tmp_path / 'disk.raw'}: qemu-nbd answered nothing for 1 s, and was ended"
    assert told["kind"] == TryAgain.kind
    assert told["left"] == []
    found = find(f"validate on kvm01: {told['message']}")
    assert found is not None
    assert found.code == "HF-VALIDATE-006"


def test_a_server_that_heeds_no_request_to_end_is_ended_all_the_same(tmp_path: Path) -> None:
    assert answer(tmp_path, "end")["left"] == []
