"""A manifest as tables for a person. Every text in it is another machine's: it is shown, never obeyed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rich.console import RenderableType
from rich.filesize import pick_unit_and_suffix
from rich.table import Table
from rich.text import Text

from hyperflow.manifest.models import STAGES, Disk, Manifest, Vm
from hyperflow.manifest.shown import shown


def view(manifest: Manifest, file: Path) -> Iterator[RenderableType]:
    """Give the tables of a manifest.

    :param file: where it lies, absolute; paths below its folder are shown relative to it
    """
    yield _machine(manifest)
    yield _disks(manifest, file.parent)
    if manifest.nics:
        table = _table("Network adapters", "id", "MAC", "network at the source")
        for nic in manifest.nics:
            table.add_row(*map(_text, (nic.id, nic.mac, nic.network)))
        yield table
    yield _pipeline(manifest)
    yield _output(manifest, file)
    for note in manifest.notes or []:
        yield _text(f"note: {note}")
    for warning in manifest.warnings or []:
        yield Text(shown(f"warning of {warning.stage}: {warning.message}"), style="yellow")


def displayed(path: str, folder: Path) -> str:
    """Write a path relative to the manifest's folder when it lies below; only for display, no file is looked for."""
    pure = PurePosixPath(os.path.normpath(path))
    return str(pure.relative_to(folder)) if pure.is_relative_to(folder) else path


def size(count: int) -> str:
    """Write a number of bytes as a person reads it, in binary units."""
    unit, suffix = pick_unit_and_suffix(count, ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"], 1024)
    return f"{count} {suffix}" if unit == 1 else f"{count / unit:.1f} {suffix}"


def _machine(manifest: Manifest) -> Table:
    vm, source, metadata = manifest.vm or Vm(), manifest.source, manifest.metadata
    memory = f"{vm.mem_mb} MiB" if vm.mem_mb else f"{vm.mem_gb} GiB" if vm.mem_gb else None
    rows = {
        "name": source.vm_name if source else None,
        "id": source.vm_id if source else None,
        "from": " ".join(filter(None, (source.provider, source.datacenter))) if source else None,
        "exported": " by ".join(filter(None, (source.export_timestamp, source.export_method))) if source else None,
        "CPUs": str(vm.cpu) if vm.cpu else None,
        "memory": memory,
        "firmware": vm.firmware + (" with Secure Boot" if vm.secureboot else ""),
        "guest": vm.os_hint + (f", {vm.os_version}" if vm.os_version else ""),
        "job": metadata.job_id if metadata else None,
        "tags": ", ".join(f"{key}={value}" for key, value in (metadata.tags or {}).items()) if metadata else None,
        "configuration": ", ".join(manifest.configuration.to_document()) if manifest.configuration else None,
    }
    table = _table("Virtual machine", "", "")
    table.show_header = False
    for name, value in rows.items():
        if value:
            table.add_row(name, _text(value))
    return table


def _disks(manifest: Manifest, folder: Path) -> Table:
    table = _table("Disks", "id", "type", "format", "file", "guest sees", "checksum", "path")
    boot = manifest.boot_disk()
    for disk in manifest.disks_in_boot_order():
        table.add_row(
            disk.id,
            "boots" if disk is boot else disk.disk_type,
            disk.source_format,
            size(disk.bytes),
            size(disk.virtual_bytes) if disk.virtual_bytes is not None else "",
            _checksum(disk),
            _text(displayed(disk.local_path, folder)),
        )
    return table


def _checksum(disk: Disk) -> Text:
    return Text(f"{disk.sha256[:12]}...") if disk.sha256 else Text("none", style="yellow")


def _pipeline(manifest: Manifest) -> RenderableType:
    if manifest.pipeline is None:
        return Text("Pipeline: none in the manifest, so the profile's runs")
    table = _table("Pipeline", "stage", "runs", "settings")
    for name, options in manifest.pipeline.to_document().items():
        settings = ", ".join(f"{key}: {str(value).lower()}" for key, value in options.items() if key != "enabled")
        table.add_row(name, "yes" if name in manifest.pipeline.enabled() else "no", _text(settings))
    for name in STAGES:
        if name not in manifest.pipeline.to_document():
            table.add_row(name, "no", "")
    return table


def _output(manifest: Manifest, file: Path) -> Table:
    folder = manifest.output_directory(PurePosixPath(file))
    table = _table("Images", "disk", "file")
    for disk in manifest.disks_in_boot_order():
        table.add_row(disk.id, _text(displayed(str(folder / manifest.output_name(disk)), file.parent)))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _text(value: object) -> Text:
    return Text(shown(str(value)) if value is not None else "")
