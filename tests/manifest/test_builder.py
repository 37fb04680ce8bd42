"""Manifest and OVF descriptor of an exported VM."""

import dataclasses
import hashlib
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from xml.etree import ElementTree

import jsonschema
import pytest
from hyperflow.manifest.builder import ManifestBuilder, build_manifest, timestamp
from hyperflow.manifest.facts import DiskFacts, NicFacts, StagedDisk, VmFacts
from hyperflow.manifest.guest_ids import os_hint
from hyperflow.manifest.load import ManifestError, parse_manifest
from hyperflow.manifest.models import ExportWarning, Output, Pipeline
from hyperflow.manifest.ovf import OVF, RASD, VMW, build_ovf
from hyperflow.manifest.save import canonical
from hyperflow.manifest.schema import manifest_schema
from pyVmomi import vim

NOW = datetime(2026, 11, 23, 21, 0, 5, 999, tzinfo=UTC)


def web01(count=2, **changes):
    facts = VmFacts(
        provider="vsphere",
        vm_id="vm-59",
        vm_name="web01",
        datacenter="DC0",
        cpu=2,
        memory_mb=1536,
        firmware="bios",
        secureboot=False,
        guest_id="debian12_64Guest",
        guest_full_name="Debian GNU/Linux 12 (64-bit)",
        nics=(NicFacts("nic-0", "00:50:56:9a:10:01", "VM Network"),),
        disks=tuple(
            DiskFacts(f"disk-{number}", f"Hard disk {number + 1}", (number + 1) << 30, number)
            for number in range(count)
        ),
    )
    return dataclasses.replace(facts, **changes)


def staged(count=2):
    return [
        StagedDisk(
            f"disk-{number}",
            f"/s/web01/web01-disk{number + 1}.vmdk",
            100 + number,
            hashlib.sha256(bytes([number])).hexdigest(),
            (number + 1) << 30,
        )
        for number in range(count)
    ]


def parsed(descriptor):
    return ElementTree.fromstring(descriptor)  # noqa: S314 - our own document


def build(vm=None, files=None, **more):
    return build_manifest(vm or web01(), staged() if files is None else files, exported=NOW, job_id="run-1", **more)


def test_a_built_manifest_passes_loader_and_schema():
    manifest = build(
        pipeline=Pipeline.model_validate({"inspect": {"enabled": True}}),
        output=Output(directory="/images/web01"),
        tags={"owner": "ops"},
        notes=["a note"],
        warnings=[ExportWarning(stage="export", message="slow")],
    )
    text = canonical(manifest)
    assert canonical(parse_manifest(text)) == text
    jsonschema.Draft7Validator(manifest_schema()).validate(manifest.to_document())
    assert manifest.source.to_document() == {
        "provider": "vsphere",
        "vm_id": "vm-59",
        "vm_name": "web01",
        "datacenter": "DC0",
        "export_timestamp": "2026-11-23T21:00:05Z",
        "export_method": "hyperflow-nfc",
    }


def test_disks_come_in_the_vms_order_and_the_first_boots():
    manifest = build(files=staged()[::-1])
    first, second = manifest.to_document()["disks"]
    assert first == {
        "id": "disk-0",
        "source_format": "vmdk",
        "bytes": 100,
        "local_path": "/s/web01/web01-disk1.vmdk",
        "checksum": "sha256:" + hashlib.sha256(b"\x00").hexdigest(),
        "boot_order_hint": 0,
        "label": "Hard disk 1",
        "disk_type": "boot",
        "virtual_bytes": 1 << 30,
    }
    assert (second["id"], second["disk_type"], second["boot_order_hint"]) == ("disk-1", "data", 1)


def test_the_disk_that_vsphere_boots_first_is_the_boot_disk_wherever_it_stands():
    disks = web01().disks
    swapped = (dataclasses.replace(disks[0], boot_order=1), dataclasses.replace(disks[1], boot_order=0))
    manifest = build(web01(disks=swapped))
    assert (manifest.boot_disk().id, manifest.boot_disk().disk_type) == ("disk-1", "boot")


@pytest.mark.parametrize(("megabytes", "gigabytes"), [(4, 1), (512, 1), (1024, 1), (1025, 2), (1536, 2), (16384, 16)])
def test_memory_is_rounded_up_and_kept_exactly_beside(megabytes, gigabytes):
    vm = build(web01(memory_mb=megabytes)).vm
    assert (vm.mem_gb, vm.mem_mb) == (gigabytes, megabytes)


@pytest.mark.parametrize(("said", "written"), [("efi", "uefi"), ("bios", "bios"), ("", "unknown")])
def test_firmware_is_written_in_the_contracts_words(said, written):
    assert build(web01(firmware=said)).vm.firmware == written


def test_a_disk_without_a_digest_has_no_checksum_at_all():
    files = [dataclasses.replace(file, sha256=None) for file in staged()]
    assert "checksum" not in build(files=files).to_document()["disks"][0]


def test_files_and_disks_must_belong_together():
    with pytest.raises(ManifestError) as refused:
        build(files=[staged()[0], dataclasses.replace(staged()[1], disk_id="disk-7")])
    assert [fault.found for fault in refused.value.faults] == ["no file for disk-1", "a file for disk-7"]
    with pytest.raises(ManifestError, match="two files for one disk"):
        build(files=[*staged(), staged()[0]])


def test_the_builder_refuses_what_the_loader_would_refuse():
    with pytest.raises(ManifestError) as refused:
        build(
            web01(cpu=0, nics=(NicFacts("nic-0", "no mac", "VM Network"),)),
            [dataclasses.replace(staged()[0], path="web01.vmdk"), staged()[1]],
        )
    assert [fault.path for fault in refused.value.faults] == ["vm.cpu", "disks[0].local_path", "nics[0].mac"]
    with pytest.raises(ManifestError, match="disks: found a list of 0"):
        build(web01(count=0), [])


def test_the_builder_is_fluent_and_leaves_out_what_was_not_said():
    manifest = (
        ManifestBuilder("web01")
        .source(provider="vsphere", exported=NOW)
        .hardware(cpu=2, memory_mb=512, firmware="efi", secureboot=True)
        .guest("windows2019srv_64Guest")
        .disk("system", "/s/a.qcow2", 10, source_format="qcow2", boot_order=1)
        .disk("swap", "/s/b.raw", 0, source_format="raw", boot_order=0, virtual_bytes=0)
        .nic("nic-0", network="VM Network")
        .note("a note")
        .warn(ExportWarning(stage="export", message="slow"))
        .tag("owner", "ops")
        .made(NOW, job_id="run-1")
        .pipeline(Pipeline.model_validate({"convert": {"enabled": True}}))
        .output(Output(format="raw"))
        .build()
    )
    assert manifest.to_document() == {
        "manifest_version": "1.0",
        "source": {"provider": "vsphere", "vm_name": "web01", "export_timestamp": "2026-11-23T21:00:05Z"},
        "vm": {
            "cpu": 2,
            "mem_gb": 1,
            "mem_mb": 512,
            "firmware": "uefi",
            "secureboot": True,
            "os_hint": "windows",
            "os_version": "windows2019srv_64Guest",
            "guest_id": "windows2019srv_64Guest",
        },
        "disks": [
            {
                "id": "system",
                "source_format": "qcow2",
                "bytes": 10,
                "local_path": "/s/a.qcow2",
                "boot_order_hint": 1,
                "disk_type": "data",
            },
            {
                "id": "swap",
                "source_format": "raw",
                "bytes": 0,
                "local_path": "/s/b.raw",
                "boot_order_hint": 0,
                "disk_type": "boot",
                "virtual_bytes": 0,
            },
        ],
        "nics": [{"id": "nic-0", "network": "VM Network"}],
        "notes": ["a note"],
        "warnings": [{"stage": "export", "message": "slow"}],
        "metadata": {"job_id": "run-1", "created_at": "2026-11-23T21:00:05Z", "tags": {"owner": "ops"}},
        "pipeline": {"convert": {"enabled": True}},
        "output": {"format": "raw"},
    }


def test_the_fluent_builder_lists_all_that_the_loader_would_refuse_and_only_at_the_end():
    builder = (
        ManifestBuilder("web01")
        .hardware(cpu=0, memory_mb=0)
        .disk("a b", "relative", -1, source_format="ova", sha256="ABC")
        .disk("c", "/s/c", True)
        .disk("c", "/s/c", 1)
        .nic("nic-0", mac="none")
        .tag("hooks", "is a tag")
    )
    with pytest.raises(ManifestError) as refused:
        builder.build()
    assert {fault.path for fault in refused.value.faults} == {
        *("vm.cpu", "vm.mem_gb", "vm.mem_mb", "disks[0].id", "disks[0].local_path", "disks[0].bytes"),
        *("disks[0].source_format", "disks[0].checksum", "disks[1].bytes", "disks[2].id", "disks[2].local_path"),
        "nics[0].mac",
    }
    with pytest.raises(ManifestError, match="disks: found a list of 0, expected at least 1"):
        ManifestBuilder("web01").build()


def test_a_time_is_written_in_utc_and_must_have_a_zone():
    assert timestamp(NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))) == "2026-11-23T21:00:05Z"
    with pytest.raises(ValueError, match="time zone"):
        timestamp(NOW.replace(tzinfo=None))


def test_every_guest_id_of_vsphere_has_the_family_its_name_says():
    neither = (
        *("dos", "freebsd", "solaris", "os2", "eComStation", "netware", "openServer", "unixWare"),
        *("darwin", "vmkernel", "otherGuest"),
    )
    assert len(vim.vm.GuestOsDescriptor.GuestOsIdentifier.values) > 150
    for guest_id in vim.vm.GuestOsDescriptor.GuestOsIdentifier.values:
        expected = "windows" if guest_id.startswith("win") else "unknown" if guest_id.startswith(neither) else "linux"
        assert (guest_id, os_hint(guest_id)) == (guest_id, expected)


def test_a_guest_id_newer_than_the_list_is_told_by_its_full_name():
    assert os_hint("novelGuest", "Novel Linux 7 (64-bit)") == "linux"
    assert os_hint("novelGuest", "Microsoft Windows 15") == "windows"
    assert os_hint(None) == os_hint("novelGuest", "Plan 9") == "unknown"


def test_the_descriptor_says_what_the_vm_is_and_how_large_its_files_are():
    root = parsed(build_ovf(web01(firmware="efi", secureboot=True), staged()))
    ns = {"ovf": OVF, "rasd": RASD, "vmw": VMW}

    def name(local):
        return f"{{{OVF}}}{local}"

    files = root.findall("ovf:References/ovf:File", ns)
    assert [(file.get(name("href")), file.get(name("size"))) for file in files] == [
        ("web01-disk1.vmdk", "100"),
        ("web01-disk2.vmdk", "101"),
    ]
    disk = root.find("ovf:DiskSection/ovf:Disk", ns)
    assert disk.get(name("capacity")) == str(1 << 30)
    assert disk.get(name("fileRef")) == files[0].get(name("id"))
    assert disk.get(name("format")).endswith("#streamOptimized")
    assert disk.get(name("populatedSize")) is None
    assert root.find("ovf:NetworkSection/ovf:Network", ns).get(name("name")) == "VM Network"
    hardware = root.find("ovf:VirtualSystem/ovf:VirtualHardwareSection", ns)
    kinds = [item.find("rasd:ResourceType", ns).text for item in hardware.findall("ovf:Item", ns)]
    assert kinds == ["3", "4", "6", "17", "17", "10"]
    config = {item.get(f"{{{VMW}}}key"): item.get(f"{{{VMW}}}value") for item in hardware.findall("vmw:Config", ns)}
    assert config == {"firmware": "efi", "bootOptions.efiSecureBootEnabled": "true"}


def test_disks_beyond_fifteen_get_further_controllers_and_never_the_controllers_own_unit():
    root = parsed(build_ovf(web01(count=31), staged(31)))
    items = root.findall(f".//{{{OVF}}}Item")
    texts = [{child.tag.partition("}")[2]: child.text for child in item} for item in items]
    controllers = [item["InstanceID"] for item in texts if item["ResourceType"] == "6"]
    places = [(item["Parent"], item["AddressOnParent"]) for item in texts if item["ResourceType"] == "17"]
    assert len(controllers) == 3
    assert len(set(places)) == 31
    assert {parent for parent, _ in places} == set(controllers)
    assert all(unit != "7" for _, unit in places)
    assert len({item["InstanceID"] for item in texts}) == len(texts)


def test_a_hostile_name_stays_text_in_the_descriptor():
    name = '</ovf:Name><evil a="1">&\x00\x1b\'"'
    root = parsed(build_ovf(web01(vm_name=name, nics=(NicFacts("n", "x", name),)), staged()))
    shown = root.find(f"{{{OVF}}}VirtualSystem/{{{OVF}}}Name").text
    assert shown == name.replace("\x00", "\\u0000").replace("\x1b", "\\u001b")


def test_virt_v2v_reads_the_descriptor(tmp_path):
    # libguestfs' own reader of OVF: a second opinion on the document
    for file in staged():
        name = str(tmp_path / file.path.rpartition("/")[2])
        command = ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized", name]
        subprocess.run([*command, str(file.virtual_bytes)], check=True)
    (tmp_path / "web01.ovf").write_text(build_ovf(web01(), staged()))
    shown = subprocess.run(
        ["virt-v2v", "--print-source", "-i", "ova", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    for said in (
        "web01",
        "memory: 1610612736",
        "vCPUs: 2",
        "firmware: bios",
        "VM Network",
        "00:50:56:9a:10:01",
    ):
        assert said in shown.stdout
