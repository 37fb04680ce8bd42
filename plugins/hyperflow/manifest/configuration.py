"""``configuration`` of a manifest: what the fix stage sets in a Linux guest, besides what makes it boot.

A manifest is data from another machine, and what stands here ends in files that root's programs read: every string has
a pattern that leaves no room for a second line, a path or a command.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from hyperflow.manifest.rules import RUNNABLE
from hyperflow.manifest.section import ClosedSection, Matching, Maybe, refuse

LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
KEY_KINDS = (
    r"(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)|sk-ssh-ed25519@openssh\.com|"
    r"sk-ecdsa-sha2-nistp256@openssh\.com)"
)


class _Named:
    """Annotates an object whose keys are names: says the rule for names in the schema too.

    pydantic writes patternProperties, which alone lets every other key pass.
    """

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        written = handler(schema)
        names = written.get("propertyNames", {})
        no_name = {"anyOf": [*([names["not"]] if "not" in names else []), {"pattern": RUNNABLE}]}
        return {**written, "additionalProperties": False, "propertyNames": {**names, "not": no_name}}


def _address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise refuse("a real IP address") from None
    return value


def _address_with_prefix(value: str) -> str:
    try:
        ipaddress.ip_interface(value)
    except ValueError:
        raise refuse("a real IP address with its prefix length") from None
    return value


UserName = Annotated[str, Matching("[a-z_][a-z0-9_-]*", "a user name of a-z, 0-9, '_' and '-'", 32)]
SshKey = Annotated[
    str,
    Matching(
        KEY_KINDS + r" [A-Za-z0-9+/]{40,}={0,3}(?: [^\u0000-\u001f\u007f]{0,200})?",
        "a public key as ssh-keygen writes it, without options in front",
        16384,
    ),
]
PasswordHash = Annotated[
    str,
    Matching(
        r"\$(?:y|gy|7|2[aby]|6|5)\$[A-Za-z0-9./=$]+\$?[A-Za-z0-9./]{22,}",
        "a password's hash as `mkpasswd -m sha-512` writes it, never the password",
        400,
    ),
]
UnitName = Annotated[
    str, Matching(r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]*", "the name of a systemd unit, as ssh or ssh.socket", 200)
]
HostLabel = Annotated[str, Matching(LABEL, "a host name of letters, digits and '-', without a domain")]
HostName = Annotated[str, Matching(rf"{LABEL}(?:\.{LABEL})*", "a host name of letters, digits, '-' and '.'", 253)]
InterfaceName = Annotated[
    str, Matching("[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", "the name of an interface in the guest, as ens192")
]
Address = Annotated[str, Matching("[0-9A-Fa-f:.]{2,45}", "an IP address"), AfterValidator(_address)]
AddressWithPrefix = Annotated[
    str,
    Matching("[0-9A-Fa-f:.]{2,45}/[0-9]{1,3}", "an IP address with its prefix length, as 192.0.2.10/24"),
    AfterValidator(_address_with_prefix),
]


class User(ClosedSection):
    """One user; made where the guest has none of that name."""

    ssh_keys: Maybe[list[SshKey]] = Field(
        default=None, description="Added to the user's authorized_keys; keys that are there stay"
    )
    password_hash: Maybe[PasswordHash] = Field(
        default=None, description="As crypt(5) has it; a new user without one can log in by key only"
    )
    sudo: Maybe[Literal["password", "nopasswd"]] = Field(
        default=None, description="May become root, with the user's password or without; when absent nothing is changed"
    )


class Services(ClosedSection):
    """systemd units, each in one of the lists only."""

    enable: Maybe[list[UnitName]] = Field(default=None, description="Started at boot; .service when it has no ending")
    disable: Maybe[list[UnitName]] = Field(default=None, description="Not started at boot")
    mask: Maybe[list[UnitName]] = Field(default=None, description="Not started by anything")

    @model_validator(mode="after")
    def _in_one_list_only(self) -> Services:
        named = [unit for units in (self.enable, self.disable, self.mask) for unit in set(units or [])]
        whole = [unit if "." in unit else f"{unit}.service" for unit in named]
        if len(set(whole)) != len(whole):
            raise refuse("each unit in one of the lists only")
        return self


class Hostname(ClosedSection):
    """The guest's name."""

    hostname: HostLabel = Field(description="To /etc/hostname, and to /etc/hosts in place of the old name")
    domain: Maybe[HostName] = Field(default=None, description="For the full name in /etc/hosts")
    hosts: Maybe[Annotated[dict[Address, list[HostName]], _Named()]] = Field(
        default=None, description="Further lines of /etc/hosts: address -> names"
    )


class Interface(ClosedSection):
    """How an interface gets its addresses, in place of what the guest has for it."""

    dhcp: bool = False
    addresses: Maybe[list[AddressWithPrefix]] = None
    gateway: Maybe[Address] = None
    dns: Maybe[list[Address]] = Field(default=None, description="Name servers")

    @model_validator(mode="after")
    def _has_an_address(self) -> Interface:
        if self.dhcp == bool(self.addresses):
            raise refuse("either dhcp: true or addresses")
        if self.dhcp and (self.gateway or self.dns):
            raise refuse("gateway and dns with addresses only")
        return self


class Network(ClosedSection):
    """The guest's interfaces, by the names that they have in the guest."""

    interfaces: Annotated[dict[InterfaceName, Interface], _Named()]


class Configuration(ClosedSection):
    """Settings to write into a Linux guest; the fix stage does it and reads each back."""

    users: Maybe[Annotated[dict[UserName, User], _Named()]] = Field(default=None, description="User name -> user")
    services: Maybe[Services] = None
    hostname: Maybe[Hostname] = None
    network: Maybe[Network] = None
