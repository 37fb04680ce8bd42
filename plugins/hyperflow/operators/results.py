"""What a host says it has observed, held to what it was asked: the paths and names that later tasks go on with.

A result is a file on another machine. Where it names a path that the control plane hands to the next stage, or shows
to a person, that path must be the one that was asked for.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Differing = tuple[str, object, object]  # field, found, expected
SHA256 = re.compile("[0-9a-f]{64}")


def require_sound(result: dict[str, Any]) -> None:
    """Hold a stage's result to its shape.

    :raises AirflowFailException: with every fault
    """
    from hyperflow.manifest.report_builder import ReportError, host_part

    error = result.get("error")
    if not isinstance(result.get("observed"), dict) or not isinstance(error, dict | None):
        raise AirflowFailException("result of the host: found no object in observed or error, expected both")
    for field in ("seconds", "bytes_read", "bytes_written"):
        if type(result.get(field, 0)) not in (int, float):
            raise AirflowFailException(f"result of the host: {field}: found {result[field]!r}, expected a number")
    commands = result.get("commands", [])
    if not isinstance(commands, list) or not all(_is_command(each) for each in commands):
        raise AirflowFailException("result of the host: commands: found something else than commands that were run")
    try:
        host_part(result)
    except ReportError as fault:
        raise AirflowFailException(f"result of the host is none: {fault}") from fault


def _is_command(told: Any) -> bool:
    """Whether it is ``{"command", "exit", "seconds"}``; the last two are None where nobody knows them."""
    return (
        isinstance(told, dict)
        and isinstance(told.get("command"), str)
        and isinstance(told.get("exit", ""), int | None)
        and isinstance(told.get("seconds", ""), int | float | None)
    )


def require_as_asked(stage: str, options: dict[str, Any], observed: dict[str, Any]) -> None:
    """Hold what a stage observed to its options.

    :raises AirflowFailException: with every path, name or size that is another
    """
    differing = CHECKS[stage](options, observed) if stage in CHECKS else iter(())
    wrong = [f"{field}: found {found!r}, expected {expected!r}" for field, found, expected in differing]
    if wrong:
        raise AirflowFailException(f"result of {stage}: is of something else than was asked for: {'; '.join(wrong)}")


def require_every_disk(images: Sequence[dict[str, Any]], disks: Sequence[str]) -> None:
    """See that each disk of the VM has its image: a conversion that a person marks as done leaves none.

    :param disks: their ids
    :raises AirflowFailException: naming those that are missing, or are twice or nobody's
    """
    found = [image["disk_id"] for image in images]
    if sorted(found) != sorted(disks):
        raise AirflowFailException(
            f"converted images: found {', '.join(sorted(found)) or 'none'}, expected one of each disk, "
            f"{', '.join(sorted(disks))}. Was a task convert marked as done by hand? Clear it"
        )


def _same(observed: dict[str, Any], **expected: object) -> Iterator[Differing]:
    for field, value in expected.items():
        if observed.get(field) != value:
            yield field, observed.get(field), value


def _digest(observed: dict[str, Any], field: str = "sha256") -> Iterator[Differing]:
    found = observed.get(field)
    if not isinstance(found, str) or not SHA256.fullmatch(found):
        yield field, found, "64 lowercase hex digits"


def _below(observed: dict[str, Any], field: str, folder: str) -> Iterator[Differing]:
    """What a path must be: nothing, or a file straight in the folder."""
    found = observed.get(field)
    if found is not None and (
        not isinstance(found, str) or posixpath.split(found) != (folder, posixpath.basename(found))
    ):
        yield field, found, f"a file in {folder}"


def _download(options: dict[str, Any], observed: dict[str, Any]) -> Iterator[Differing]:
    asked = {"path": options["target"], "disk_id": options["disk_id"], "virtual_bytes": options["capacity_bytes"]}
    yield from _same(observed, **asked, source=options["source"])
    yield from _digest(observed)


def _fix(options: dict[str, Any], observed: dict[str, Any]) -> Iterator[Differing]:
    yield from _same(observed, manifest_sha256=options["manifest"]["sha256"])
    overlays = observed.get("overlays")
    if not isinstance(overlays, dict):
        yield "overlays", overlays, "an overlay for each disk"
        return
    for disk_id, found in overlays.items():
        expected = f"{options['work_directory']}/fix/{disk_id}.qcow2"
        if found != expected or "/" in disk_id:
            yield f"overlays.{disk_id}", found, expected


def _convert(options: dict[str, Any], observed: dict[str, Any]) -> Iterator[Differing]:
    path = f"{options['output_directory']}/{options['filename']}"
    yield from _same(observed, path=path, disk_id=options["disk_id"], format=options["format"])


def _checksum(options: dict[str, Any], observed: dict[str, Any]) -> Iterator[Differing]:
    yield from _same(observed, disk_id=options["disk_id"])


def _boot(options: dict[str, Any], observed: dict[str, Any]) -> Iterator[Differing]:
    for field in ("console_log", "screenshot"):
        yield from _below(observed, field, options["artifacts_directory"])


def _define(options: dict[str, Any], observed: dict[str, Any]) -> Iterator[Differing]:
    yield from _same(observed, name=options["name"], uuid=str(options["uuid"]).lower())


def _document(options: dict[str, Any], observed: dict[str, Any]) -> Iterator[Differing]:
    yield from _same(observed, path=options["path"])


def _manifest(options: dict[str, Any], observed: dict[str, Any]) -> Iterator[Differing]:
    yield from _document(options, observed)
    yield from _digest(observed)


CHECKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Iterator[Differing]]] = {
    "download": _download,
    "fix": _fix,
    "convert": _convert,
    "checksum": _checksum,
    "boot": _boot,
    "define": _define,
    "manifest": _manifest,
    "report": _document,
}
