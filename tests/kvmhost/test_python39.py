"""The host's program on the oldest Python that a host may have, RHEL 9's 3.9; and what it says on an older one."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hyperflow.hooks.kvmhost_program import pack

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
PYENV = Path.home() / ".pyenv" / "versions"


def python39() -> str:
    for path in (*sorted(PYENV.glob("3.9.*/bin/python3.9")), Path("/usr/bin/python3.9")):
        if path.exists():
            return str(path)
    pytest.skip("this machine has no Python 3.9 (/usr/bin, or of pyenv); Debian has no package of it")


def test_a_stage_runs_to_its_end(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    image.write_bytes(bytes(1 << 20))
    disk = {
        "id": "disk-0",
        "source_format": "raw",
        "bytes": 1 << 20,
        "local_path": str(image),
        "checksum": f"sha256:{hashlib.sha256(bytes(1 << 20)).hexdigest()}",
        "boot_order_hint": 0,
    }
    manifest = tmp_path / "artifact-manifest.json"
    manifest.write_text(json.dumps({"manifest_version": "1.0", "disks": [disk]}))
    reference = {"path": str(manifest), "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}
    options = {"manifest": reference, "disk_id": "disk-0"}
    result = tmp_path / "result.json"
    done = subprocess.run(
        [python39(), "-m", "hyperflow.kvmhost", "checksum", "--result", str(result)],
        input=json.dumps(options),
        env={"PYTHONPATH": str(PLUGINS), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(result.read_text())["observed"]["sha256"] == disk["checksum"].removeprefix("sha256:")


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8"])
def test_on_an_older_one_the_program_says_so(tmp_path: Path, version: str) -> None:
    found = sorted(PYENV.glob(f"{version}.*/bin/python{version}"))
    if not found:
        pytest.skip(f"this machine has no Python {version} of pyenv")
    program = tmp_path / "hyperflow-kvmhost.pyz"
    program.write_bytes(pack().content)
    command = [found[0], program, "check", "--result", "-"]
    done = subprocess.run(command, input="{}", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"python: found {version}, expected 3.9 or newer\n"
