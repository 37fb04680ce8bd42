"""Writes manifests and reports: canonical JSON or YAML, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import yaml

from hyperflow.manifest.section import Section


def canonical(document: Section | dict[str, Any]) -> str:
    """Write a document as text: keys in their order, two spaces, one line end at the end.

    The text of a document that was read from such text is the same text.
    """
    return json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_yaml(document: Section | dict[str, Any]) -> str:
    """Write a document as YAML that readers of YAML 1.1 and 1.2 take alike: every string value has quotes.

    :raises ValueError: NaN or an infinite number
    """
    plain = json.loads(canonical(document))  # no object twice, so no anchors; and what JSON refuses is refused
    return yaml.dump(plain, Dumper=_QuotingDumper, sort_keys=False, allow_unicode=True, width=1_000_000)


def save(document: Section | dict[str, Any], path: Path) -> None:
    """Write a document so that a reader finds the old file, the new one, or none, and never a part.

    A ``.yaml`` or ``.yml`` file is written as YAML, any other as JSON.

    :raises OSError: the folder is missing or cannot be written
    """
    text = as_yaml(document) if path.suffix in (".yaml", ".yml") else canonical(document)
    content = text.encode()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # other threads save the same file
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _plain(document: Section | dict[str, Any]) -> dict[str, Any]:
    return document.to_document() if isinstance(document, Section) else document


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power failure, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")  # are no strings to some readers


class _QuotingDumper(yaml.SafeDumper):
    """Puts quotes around strings: `no`, `1:30`, `010`, `1e3` and `0o10` mean different things to different readers."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"')

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, _ in node.value:
            if re.fullmatch("[a-z][a-z_]*", key.value) and key.value not in _WORDS:
                key.style = None
        return node


_QuotingDumper.add_representer(str, _QuotingDumper.represent_str)
