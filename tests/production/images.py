"""The images that docker-compose.yaml names, made of Debian's and PyPI's packages, because none can be pulled.

Only what cannot be had is a stand-in (``images/*/Dockerfile``): Debian's Python, PostgreSQL and Redis by the official
names. Hyperflow's own image is made by the project's Dockerfile. All are kept in one archive in ``~/.cache/hyperflow``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab.guest import build as guest_build
from lab.guest.sources import debian_sources
from tests.production.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(__file__).parent / "images"
CACHE = Path.home() / ".cache/hyperflow"
STAND_INS = {"airflow": "apache/airflow:3.3.2-python3.12", "postgres": "postgres:16", "redis": "redis:7.2-bookworm"}
OURS = "hyperflow-airflow:3.3.2"
BASE = "hyperflow-debian:bookworm"
PACKAGES = "ca-certificates,curl,python3,python3-venv"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
PIP_SETTINGS = ("cert", "extra-index-url", "index-url", "proxy", "trusted-host", "timeout")


def ensure_images(engine: Engine) -> None:
    """Load the images into an engine, or make them (some minutes)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    archive = CACHE / f"production-{_digest()}.tar"
    with (CACHE / "production.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            engine.docker("load", "--quiet", "--input", str(archive))
            return
        _import_debian(engine)
        for name, tag in STAND_INS.items():
            _build(engine, tag, RECIPES / name)
        _build(engine, OURS, ROOT)
        for outdated in CACHE.glob("production-*.tar"):  # of 1.3 GB
            outdated.unlink()
        partial = archive.with_suffix(".partial")
        engine.docker("save", "--output", str(partial), OURS, STAND_INS["postgres"], STAND_INS["redis"])
        partial.rename(archive)


def _digest() -> str:
    digest = hashlib.sha256()
    recipes = sorted(path for path in RECIPES.rglob("*") if path.is_file())
    for path in (Path(__file__), *recipes, ROOT / "Dockerfile", ROOT / "requirements-production.txt"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _build(engine: Engine, tag: str, folder: Path) -> None:
    """Build an image with nothing of its folder but what its Dockerfile copies."""
    dockerfile = (folder / "Dockerfile").read_text()
    copied = [line.split()[-2] for line in dockerfile.splitlines() if line.startswith("COPY ")]
    with tempfile.TemporaryDirectory() as context:
        for name in ("Dockerfile", *copied):
            shutil.copy(folder / name, context)
        engine.docker("build", "--quiet", "--network", "host", "--tag", tag, context, limit=1200)


def _import_debian(engine: Engine) -> None:
    """Make Debian's base system an image, with this machine's package sources and certificates."""
    sources = debian_sources(guest_build.SUITE)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        root, archive = Path(scratch, "root"), Path(scratch, "root.tar")
        alone = ["unshare", "--mount", "--propagation", "private"]  # what is mounted goes with its process
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}"]
        _run(*alone, *command, guest_build.SUITE, str(root), *(source.uri for source in sources[:1]))
        lines = [f"deb {source.uri} {source.suite} main\n" for source in sources]
        if lines:
            (root / "etc/apt/sources.list").write_text("".join(lines))  # else it names debootstrap's own mirror
        shutil.copy(Path("/", CERTIFICATES), root / CERTIFICATES)
        (root / "etc/pip.conf").write_text(_pip_settings())
        _run("tar", "--create", "--file", str(archive), "--directory", str(root), "--one-file-system", ".")
        engine.docker("import", str(archive), BASE)


def _pip_settings() -> str:
    """This machine's settings of pip, for a pip in a container."""
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    lines = [line.partition(".")[2] for line in listed.replace(":env:.", "env.").splitlines()]
    known = {line.partition("=")[0]: line.partition("=")[2].strip("'") for line in lines}
    return "[global]\n" + "".join(f"{name} = {known[name]}\n" for name in PIP_SETTINGS if name in known)


def _run(*command: str) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: exit status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
