"""What is wrong with a vCenter's connection is said by its field, before anything is asked."""

from __future__ import annotations

import pytest
from airflow.sdk import Connection
from hyperflow.hooks.vsphere import session_arguments


def connection(host: str | None) -> Connection:
    return Connection(conn_id="vc01", host=host, login="hyperflow", password="secret")


def test_blanks_around_a_host_that_was_pasted_are_no_part_of_it() -> None:
    assert session_arguments(connection(" vcenter.example.org\t"))["host"] == "vcenter.example.org"


@pytest.mark.parametrize("host", ["https://vcenter.example.org", "vcenter .example.org", " \n"])
def test_a_host_that_is_no_name_is_told_as_the_field_that_it_is(host: str) -> None:
    with pytest.raises(ValueError, match="connection vc01: host: found "):
        session_arguments(connection(host))


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="connection vc01: host missing; a vCenter needs them"):
        session_arguments(connection(None))
