"""Names that are safe as a file name, a folder and a DAG id, made of names that people gave to VMs."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SLUG_LIMIT = 80  # characters; a plan's name and this fit a DAG id (250) and a file name (255)
_DIGEST = 8  # hexadecimal digits of the suffix


@dataclass(frozen=True)
class Selector:
    """Which VM is meant.

    :param kind: how it is named
    :param value: the name, ``/Datacenter/vm/folder/name``, or ``vm-42``
    """

    kind: Literal["name", "inventory_path", "moref"]
    value: str

    def __str__(self) -> str:
        return f"{self.kind} {self.value!r}"


def slugs(selectors: Sequence[Selector]) -> list[str]:
    """Name each VM of a plan.

    A slug has letters, digits, ``.``, ``_`` and ``-`` only, starts and ends with no ``.`` or ``-``, and has
    at most :data:`SLUG_LIMIT` characters. It is the VM's own name where that is such a name and no other VM
    of the plan has it (upper and lower case taken as one); otherwise 8 digits of a SHA-256 of the selector
    follow. It depends on no order and on no VM but those that share the name.
    """
    plain = [_plain(selector) for selector in selectors]
    seen = Counter(slug.casefold() for slug in plain)
    # A VM may be called what another one's slug is made to be: "web-01-9378a22f" beside "web 01".
    seen.update(_suffixed(slug, selector).casefold() for selector, slug in zip(selectors, plain, strict=True))
    return [
        slug if slug == _last_part(selector) and seen[slug.casefold()] == 1 else _suffixed(slug, selector)
        for selector, slug in zip(selectors, plain, strict=True)
    ]


def _last_part(selector: Selector) -> str:
    return selector.value.rstrip("/").rpartition("/")[2] if selector.kind == "inventory_path" else selector.value


def _plain(selector: Selector) -> str:
    ascii_text = unicodedata.normalize("NFKD", _last_part(selector)).encode("ascii", "ignore").decode()
    # A surrogate pair of which one half is missing was refused on reading; "ignore" drops accents only.
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_text).strip(".-")
    return slug[:SLUG_LIMIT].rstrip(".-") or "vm"


def _suffixed(slug: str, selector: Selector) -> str:
    digest = hashlib.sha256(f"{selector.kind}:{selector.value}".encode()).hexdigest()[:_DIGEST]
    stem = slug[: SLUG_LIMIT - _DIGEST - 1].rstrip(".-") or "vm"
    return f"{stem}-{digest}"
