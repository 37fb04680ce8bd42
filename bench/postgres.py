"""A PostgreSQL of the distribution for as long as it is needed: a data folder of its own, a socket and no port."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from bench.stages import BenchError
from lab import processes

OWNER = "postgres"  # the package's user; PostgreSQL refuses to run as root
NAME = "airflow"  # of the database and of its user
START_LIMIT = 60.0  # seconds


@dataclass(frozen=True)
class Database:
    """A server with an empty database.

    :param socket: folder of its socket, which only its owner and root can enter
    """

    socket: Path
    server: processes.Server


@contextmanager
def running() -> Iterator[Database]:
    """Run a server with an empty database, and end it.

    Not in the folder of the measuring: that is below a home which only its owner may enter.
    """
    folder = Path(tempfile.mkdtemp(prefix="hyperflow-bench-postgres-"))
    server: processes.Server | None = None
    try:
        as_owner: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam(OWNER)
            os.chown(folder, user.pw_uid, user.pw_gid)
            as_owner = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--init-groups"]
        data, socket = folder / "data", folder / "socket"
        _run([*as_owner, _program("initdb"), "--auth=trust", f"--username={NAME}", "--pgdata", str(data)], folder)
        _run([*as_owner, "mkdir", "--mode=700", str(socket)], folder)
        options = ["-D", str(data), "-k", str(socket), "-c", "listen_addresses=", "-c", "log_destination=stderr"]
        log = folder / "server.log"
        server = processes.start("postgres", [*as_owner, _program("postgres"), *options], log, dict(os.environ))
        _create_database(socket, server, log)
        yield Database(socket, server)
    finally:
        if server is not None:
            processes.end([server])
        shutil.rmtree(folder, ignore_errors=True)


def url(socket: Path) -> str:
    """Write the database as SQLAlchemy, and Airflow with it, takes it."""
    return f"postgresql+psycopg2://{NAME}@/{NAME}?host={socket}"


def connect(socket: Path, database: str = NAME) -> psycopg2.extensions.connection:
    """Connect to the database; each statement is a transaction of its own."""
    connection = psycopg2.connect(host=str(socket), user=NAME, dbname=database)
    connection.autocommit = True
    return connection


def _create_database(socket: Path, server: processes.Server, log: Path) -> None:
    limit = time.monotonic() + START_LIMIT
    while True:
        try:
            connection = connect(socket, "postgres")
            break
        except psycopg2.OperationalError as fault:
            if time.monotonic() > limit or not server.is_alive():
                raise BenchError(f"PostgreSQL does not start: {fault}\n{log.read_text()[-2000:]}") from fault
            time.sleep(0.1)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {NAME}")
    connection.close()


def _program(name: str) -> str:
    """Find a program of the server, which Debian puts in a folder of its version and in no PATH.

    :raises BenchError: when there is none
    """
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    if found:
        return str(found[-1])
    elsewhere = shutil.which(name)
    if elsewhere is None:
        raise BenchError(f"PostgreSQL's {name} is missing: lab/install-packages postgresql")
    return elsewhere


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
