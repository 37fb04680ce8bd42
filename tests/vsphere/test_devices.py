"""Devices and lease URLs in the forms that a real vCenter gives them; no server is needed for these."""

from __future__ import annotations

from typing import Any

import pytest
from hyperflow.vsphere.devices import Names, labels_of, read_cds, read_disks, read_nics
from hyperflow.vsphere.errors import LeaseError
from hyperflow.vsphere.lease import match_urls
from pyVmomi import vim

device = vim.vm.device
NO_NAMES = Names({}, {})


def controller(kind: str, key: int, bus: int, sharing: str | None = None) -> Any:
    made: Any = getattr(device, kind)(key=key, busNumber=bus)
    if sharing:
        made.sharedBus = sharing
    return made


def disk(key: int, on: int, unit: int, file: str = "") -> Any:
    backing = device.VirtualDisk.FlatVer2BackingInfo(
        fileName=file or f"[ds] vm/{key}.vmdk", diskMode="persistent", uuid=f"uuid-{key}"
    )
    return device.VirtualDisk(key=key, controllerKey=on, unitNumber=unit, capacityInBytes=1 << 30, backing=backing)


def url(key: str, target: str, is_disk: bool = True, address: str = "https://esx1.example.org/nfc/t/d.vmdk") -> Any:
    return vim.HttpNfcLease.DeviceUrl(
        key=key, importKey=key, url=address, sslThumbprint="AB:CD", disk=is_disk, targetId=target, fileSize=0
    )


HARDWARE = [
    controller("VirtualIDEController", 200, 0),
    controller("VirtualLsiLogicController", 1000, 0),
    controller("ParaVirtualSCSIController", 1001, 1),
    controller("VirtualAHCIController", 15000, 0),
    controller("VirtualNVMEController", 31000, 0),
    disk(16000, 15000, 0),
    disk(32000, 31000, 0),
    disk(3000, 200, 0),
    disk(2016, 1001, 0),
    disk(2001, 1000, 8),
    disk(2000, 1000, 0),
]


def test_disks_are_ordered_by_bus_controller_and_unit() -> None:
    disks = read_disks(HARDWARE, (), NO_NAMES)
    assert [each.key for each in disks] == [2000, 2001, 2016, 16000, 3000, 32000]
    assert [each.id for each in disks] == [f"disk-{place}" for place in range(6)]
    assert [each.bus for each in disks] == ["scsi", "scsi", "scsi", "sata", "ide", "nvme"]


def test_the_machines_own_boot_order_comes_first() -> None:
    assert [each.key for each in read_disks(HARDWARE, (32000, 2016), NO_NAMES)][:3] == [32000, 2016, 2000]


def test_a_shared_bus_is_seen_at_the_disk() -> None:
    shared = [controller("VirtualLsiLogicSASController", 1000, 0, "physicalSharing"), disk(2000, 1000, 0)]
    assert read_disks(shared, (), NO_NAMES)[0].bus_sharing == "physical"


def test_backings_are_named() -> None:
    backings = {
        "rdm-virtual": device.VirtualDisk.RawDiskMappingVer1BackingInfo(
            fileName="[ds] a.vmdk", compatibilityMode="virtualMode", diskMode="persistent"
        ),
        "rdm-physical": device.VirtualDisk.RawDiskMappingVer1BackingInfo(
            fileName="[ds] a.vmdk", compatibilityMode="physicalMode", diskMode="independent_persistent"
        ),
        "se-sparse": device.VirtualDisk.SeSparseBackingInfo(fileName="[ds] a.vmdk", diskMode="persistent"),
        "flat": device.VirtualDisk.FlatVer2BackingInfo(fileName="[ds] a.vmdk", diskMode="persistent"),
    }
    for name, backing in backings.items():
        made = device.VirtualDisk(key=2000, controllerKey=1, unitNumber=0, capacityInKB=4, backing=backing)
        (read,) = read_disks([made], (), NO_NAMES)
        assert (read.backing, read.capacity_bytes, read.datastore) == (name, 4096, "ds")
        assert read.is_rdm == name.startswith("rdm")
        assert read.bus == "unknown"


def test_networks_are_named_for_standard_distributed_and_opaque_switches() -> None:
    card = device.VirtualEthernetCard
    backings = [
        card.NetworkBackingInfo(deviceName="VM Network"),
        card.DistributedVirtualPortBackingInfo(
            port=vim.dvs.PortConnection(portgroupKey="dvportgroup-7", switchUuid="50 1a")
        ),
        card.OpaqueNetworkBackingInfo(opaqueNetworkId="nsx-1", opaqueNetworkType="nsx.LogicalSwitch"),
        None,
    ]
    nics = [
        device.VirtualVmxnet3(key=4000 + place, macAddress=f"00:50:56:00:00:0{place}", backing=backing)
        for place, backing in enumerate(backings)
    ]
    names = Names({"dvportgroup-7": "Servers", "nsx-1": "Segment"}, {})
    assert [nic.network for nic in read_nics(nics, [], names)] == ["VM Network", "Servers", "Segment", None]


def test_other_devices_are_listed_by_label() -> None:
    cd = device.VirtualCdrom(
        key=3002,
        deviceInfo=vim.Description(label="CD/DVD drive 1", summary=""),
        backing=device.VirtualCdrom.IsoBackingInfo(fileName="[iso] tools.iso"),
        connectable=device.VirtualDevice.ConnectInfo(startConnected=True, allowGuestControl=True, connected=True),
    )
    tpm = device.VirtualTPM(key=11000, deviceInfo=vim.Description(label="Virtual TPM", summary=""))
    assert [(each.label, each.iso, each.connected) for each in read_cds([cd, tpm])] == [
        ("CD/DVD drive 1", "[iso] tools.iso", True)
    ]
    assert labels_of([cd, tpm], "VirtualTPM", "NoSuchDevice") == ("Virtual TPM",)


def test_urls_are_matched_by_controller_bus_and_unit_whatever_their_order() -> None:
    urls = [
        url("/vm-1/VirtualNVMEController0:0", "disk-3.vmdk"),
        url("/vm-1/nvram", "vm-1.nvram", is_disk=False),
        url("/vm-1/ParaVirtualSCSIController1:0", "disk-2.vmdk"),
        url("/vm-1/VirtualLsiLogicController0:8", "disk-1.vmdk"),
        url("/vm-1/VirtualLsiLogicController0:0", "disk-0.vmdk"),
    ]
    matched = match_urls(urls, HARDWARE, "vc.example.org")
    assert [each.disk_key for each in matched] == [32000, 2016, 2001, 2000]
    assert {each.matched_by for each in matched} == {"device"}
    assert {each.file_size for each in matched} == {None}


def test_urls_that_count_the_controllers_of_a_type_are_understood_too() -> None:
    urls = [
        url("/vm-1/ParaVirtualSCSIController0:0", "disk-1.vmdk"),  # the first of its type, on bus 1
        url("/vm-1/VirtualLsiLogicController0:0", "disk-0.vmdk"),
    ]
    matched = match_urls(urls, HARDWARE, "vc.example.org")
    assert [(each.disk_key, each.matched_by) for each in matched] == [(2016, "device"), (2000, "device")]


def test_a_number_that_can_be_read_in_two_ways_is_decided_by_order_or_refused() -> None:
    kind = "ParaVirtualSCSIController"
    hardware = [controller(kind, key, bus) for key, bus in ((1001, 1), (1002, 2))]
    hardware += [disk(2000, 1001, 0), disk(2001, 1002, 0), disk(2002, 1002, 1)]
    with pytest.raises(LeaseError, match="not certain"):
        match_urls([url(f"/vm-1/{kind}1:0", "disk-0.vmdk")], hardware, "vc")


def test_urls_are_matched_by_file_name_where_the_key_tells_nothing() -> None:
    hardware = [disk(2000, 1, 0, "[ds one] a b/x.vmdk"), disk(2001, 1, 1, "[ds] top.vmdk")]
    urls = [url("/vm-1/disk:0", "top.vmdk"), url("/vm-1/disk:1", "x.vmdk")]
    matched = match_urls(urls, hardware, "vc")
    assert [(each.disk_key, each.matched_by) for each in matched] == [(2001, "file"), (2000, "file")]


def test_urls_are_matched_by_order_only_when_the_counts_agree() -> None:
    hardware = [disk(2000, 1, 0), disk(2001, 1, 1)]
    urls = [url("/vm-1/disk:0", "disk-0.vmdk"), url("/vm-1/disk:1", "disk-1.vmdk")]
    matched = match_urls(urls, hardware, "vc")
    assert [(each.disk_key, each.matched_by) for each in matched] == [(2000, "order"), (2001, "order")]
    with pytest.raises(LeaseError, match="not certain"):
        match_urls(urls[:1], hardware, "vc")


@pytest.mark.parametrize(
    ("address", "host", "port", "expected"),
    [
        ("https://*/nfc/t/d.vmdk", "esx1", 443, "https://esx1/nfc/t/d.vmdk"),
        ("https://*/nfc/t/d.vmdk", "esx1", 8443, "https://esx1:8443/nfc/t/d.vmdk"),
        ("https://*:902/nfc/t/d.vmdk", "esx1", 443, "https://esx1:902/nfc/t/d.vmdk"),
        ("https://*/nfc/t/d.vmdk", "2001:db8::1", 443, "https://[2001:db8::1]/nfc/t/d.vmdk"),
        ("https://esx1/nfc/*/d.vmdk", "vc", 443, "https://esx1/nfc/*/d.vmdk"),
    ],
)
def test_a_star_stands_for_the_address_of_the_connection(address: str, host: str, port: int, expected: str) -> None:
    (matched,) = match_urls([url("k", "d", address=address)], [disk(2000, 1, 0)], host, port)
    assert matched.url == expected


def test_a_download_without_tls_is_refused() -> None:
    with pytest.raises(LeaseError, match="only https"):
        match_urls([url("k", "d", address="http://esx1/nfc/t/d.vmdk")], [disk(2000, 1, 0)], "vc")
