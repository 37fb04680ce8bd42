"""vSphere's faults, said so that a person knows what to do."""

from __future__ import annotations

from http.client import RemoteDisconnected

import pytest
from hyperflow.vsphere.errors import (
    Busy,
    LeaseBusy,
    LeaseError,
    NotFound,
    PermissionMissing,
    Unreachable,
    VsphereError,
    describe,
    from_fault,
)
from hyperflow.vsphere.lease import lease_error
from pyVmomi import vim, vmodl


def test_a_missing_privilege_is_named_with_its_object() -> None:
    fault = vim.fault.NoPermission(object=vim.VirtualMachine("vm-7"), privilegeId="VApp.Export")
    error = from_fault(fault, "vc")
    assert isinstance(error, PermissionMissing)
    assert "VApp.Export on vm-7 at vc" in str(error)
    assert not error.temporary


@pytest.mark.parametrize("fault", [vim.fault.TaskInProgress(), vim.fault.InvalidState()])
def test_a_machine_that_is_held_by_another_task_is_busy_and_may_be_tried_again(fault: Exception) -> None:
    error = from_fault(fault, "vc")
    assert isinstance(error, Busy)
    assert error.temporary
    assert isinstance(lease_error(fault, "snapshot-7", "vc"), LeaseBusy)


@pytest.mark.parametrize("fault", [TimeoutError("timed out"), RemoteDisconnected("closed"), BrokenPipeError()])
def test_a_broken_connection_is_temporary(fault: Exception) -> None:
    error = from_fault(fault, "vc")
    assert isinstance(error, Unreachable)
    assert error.temporary


def test_an_object_that_is_gone_is_not_found() -> None:
    fault = vmodl.fault.ManagedObjectNotFound(obj=vim.VirtualMachine("vm-7"))
    assert isinstance(from_fault(fault, "vc"), NotFound)
    assert isinstance(lease_error(fault, "vm-7", "vc"), NotFound)


def test_other_faults_keep_the_servers_words_in_one_line() -> None:
    message = vmodl.LocalizableMessage(key="k", message="the datastore is\n  full")
    fault = vim.fault.FileFault(file="[ds] a.vmdk", msg="It failed.", faultMessage=[message])
    assert describe(fault) == "FileFault: It failed.: the datastore is full"
    error = from_fault(fault, "vc")
    assert type(error) is VsphereError
    assert not error.temporary
    assert type(lease_error(fault, "vm-7", "vc")) is LeaseError


def test_the_wrong_power_state_is_not_called_busy() -> None:
    fault = vim.fault.InvalidPowerState(existingState="poweredOn", requestedState="poweredOff")
    error = lease_error(fault, "vm-7", "vc")
    assert type(error) is LeaseError
    assert not error.temporary
