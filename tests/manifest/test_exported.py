"""A manifest made of what an exporter left in a folder."""

import dataclasses
import hashlib
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hyperflow.manifest.exported import FORMATS, build_from_export
from hyperflow.manifest.facts import DiskFacts, NicFacts, StagedDisk, VmFacts
from hyperflow.manifest.faults import DocumentError
from hyperflow.manifest.ovf import build_ovf
from hyperflow.manifest.ovf_reader import read_ovf

NOW = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
QEMU_FORMATS = {"vmdk": "vmdk", "qcow2": "qcow2", "raw": "raw", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi"}
MIB = 1 << 20

# As ovftool writes it, shortened: controllers after the disks, the second disk first, memory in old units.
VMWARE = """\
<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
  xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
  xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
    <File ovf:href="web%2001-disk1.vmdk" ovf:id="file1"/>
    <File ovf:href="web%2001-disk2.vmdk" ovf:id="file2"/>
  </References>
  <DiskSection>
    <Disk ovf:capacity="16" ovf:capacityAllocationUnits="byte * 2^20" ovf:diskId="vmdisk1" ovf:fileRef="file1"/>
    <Disk ovf:capacity="8388608" ovf:diskId="vmdisk2" ovf:fileRef="file2"/>
  </DiskSection>
  <VirtualSystem ovf:id="vm">
    <Name>web 01</Name>
    <OperatingSystemSection ovf:id="94" vmw:osType="ubuntu64Guest">
      <Description>Ubuntu Linux (64-bit)</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Item><rasd:ElementName>Hard disk 2</rasd:ElementName><rasd:HostResource>ovf:/disk/vmdisk2</rasd:HostResource>
        <rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:InstanceID>9</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:ElementName>Hard disk 1</rasd:ElementName><rasd:HostResource>/disk/vmdisk1</rasd:HostResource>
        <rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:InstanceID>8</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType></Item>
      <Item><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>1536</rasd:VirtualQuantity></Item>
      <Item><rasd:Connection>VM Network</rasd:Connection><rasd:ResourceType>10</rasd:ResourceType></Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
      <vmw:Config ovf:required="false" vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""


def image(path, size=MIB, image_format=None):
    """Make a real image, as its name says."""
    made_as = QEMU_FORMATS[image_format or FORMATS[path.suffix]]
    options = ["-o", "subformat=streamOptimized"] if made_as == "vmdk" else []
    subprocess.run(["qemu-img", "create", "-q", "-f", made_as, *options, str(path), str(size)], check=True)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refusal(export, **more):
    with pytest.raises(DocumentError) as refused:
        build_from_export(export, made=NOW, **more)
    return str(refused.value)


@pytest.fixture
def export(tmp_path):
    for number, size in ((1, 16 * MIB), (2, 8 * MIB)):
        image(tmp_path / f"web 01-disk{number}.vmdk", size)
    (tmp_path / "web.ovf").write_text(VMWARE)
    return tmp_path


def test_a_vmware_export_becomes_a_manifest_with_what_its_descriptor_says(export):
    document = build_from_export(export, made=NOW).to_document()
    assert document["source"] == {"vm_name": "web 01", "export_method": "ovf"}
    assert document["vm"] == {
        "cpu": 4,
        "mem_gb": 2,
        "mem_mb": 1536,
        "firmware": "uefi",
        "secureboot": True,
        "os_hint": "linux",
        "os_version": "Ubuntu Linux (64-bit)",
        "guest_id": "ubuntu64Guest",
    }
    assert document["nics"] == [{"id": "nic-0", "network": "VM Network"}]
    first, second = document["disks"]
    path = export / "web 01-disk1.vmdk"
    assert first == {
        "id": "disk-0",
        "source_format": "vmdk",
        "bytes": path.stat().st_size,
        "local_path": str(path),
        "checksum": f"sha256:{sha256(path)}",
        "boot_order_hint": 0,
        "label": "Hard disk 1",
        "disk_type": "boot",
        "virtual_bytes": 16 * MIB,
    }
    assert (second["label"], second["disk_type"], second["virtual_bytes"]) == ("Hard disk 2", "data", 8 * MIB)
    assert build_from_export(export / "web.ovf", made=NOW).to_document() == document


def test_what_hyperflow_writes_as_ovf_it_reads_back(tmp_path):
    files = [image(tmp_path / f"a-disk{number}.vmdk", number * MIB) for number in range(1, 18)]
    vm = VmFacts(
        provider="vsphere",
        vm_id="vm-1",
        vm_name="a & b",
        datacenter="DC0",
        cpu=3,
        memory_mb=2500,
        firmware="efi",
        secureboot=True,
        guest_id="windows2019srv_64Guest",
        guest_full_name="Microsoft Windows Server 2019 (64-bit)",
        nics=(NicFacts("nic-0", "00:50:56:9a:10:01", "VM Network"),),
        disks=tuple(DiskFacts(f"disk-{n}", f"Hard disk {n + 1}", (n + 1) * MIB, n) for n in range(17)),
    )
    staged = [
        StagedDisk(f"disk-{n}", str(file), file.stat().st_size, None, (n + 1) * MIB) for n, file in enumerate(files)
    ]
    (tmp_path / "a.ovf").write_text(build_ovf(vm, staged))
    read = read_ovf(tmp_path / "a.ovf")
    known = dataclasses.asdict(vm)
    for name in ("cpu", "memory_mb", "firmware", "secureboot", "guest_id", "guest_full_name"):
        assert getattr(read, name) == known[name]
    assert read.name == "a & b"
    assert [(nic.mac, nic.network) for nic in read.nics] == [("00:50:56:9a:10:01", "VM Network")]
    manifest = build_from_export(tmp_path, made=NOW, checksums=False)
    assert [disk.local_path for disk in manifest.disks] == [str(file) for file in files]
    assert [disk.virtual_bytes for disk in manifest.disks] == [(n + 1) * MIB for n in range(17)]
    assert all(disk.checksum is None for disk in manifest.disks)


def test_a_folder_of_images_of_every_format_becomes_a_manifest_in_natural_order(tmp_path):
    names = [
        "disk1.vmdk",
        "disk2.qcow2",
        "disk3.raw",
        "disk4.img",
        "disk5.vhd",
        "disk6.vhdx",
        "disk7.vdi",
        "disk10.raw",
    ]
    for name in names:
        image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no disk")
    manifest = build_from_export(tmp_path, made=NOW)
    assert [Path(disk.local_path).name for disk in manifest.disks] == names
    assert [disk.source_format for disk in manifest.disks] == [
        *("vmdk", "qcow2", "raw", "raw", "vhd", "vhdx", "vdi", "raw")
    ]
    assert [disk.sha256 for disk in manifest.disks] == [sha256(tmp_path / name) for name in names]
    assert manifest.disks[2].virtual_bytes == MIB
    assert manifest.vm.to_document() == {}
    assert manifest.source.vm_name == tmp_path.name


def test_an_image_that_is_not_what_its_name_says_is_refused(tmp_path):
    image(tmp_path / "a.vmdk", image_format="qcow2")
    image(tmp_path / "b.vdi", image_format="raw")
    said = refusal(tmp_path)
    assert "a.vmdk: found a file that does not begin as vmdk does" in said
    assert "b.vdi: found a file that does not begin as vdi does" in said


def test_the_extents_of_a_described_disk_are_no_disks_of_their_own(tmp_path):
    name = str(tmp_path / "web.vmdk")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", name, str(MIB)], check=True
    )
    assert (tmp_path / "web-flat.vmdk").exists()
    manifest = build_from_export(tmp_path, made=NOW)
    assert [disk.local_path for disk in manifest.disks] == [name]
    assert "no checksum covers web-flat.vmdk" in manifest.warnings[0].message


def test_the_exporters_own_digests_are_compared(export):
    disk = export / "web 01-disk2.vmdk"
    listing = export / "web.mf"
    listing.write_text(f"SHA256(web.ovf)= {'0' * 64}\nSHA256({disk.name})= {sha256(disk)}\n")
    build_from_export(export, made=NOW)
    listing.write_text(f"SHA256({disk.name})= {'0' * 64}\n")
    assert f"{disk}: found SHA-256 {sha256(disk)}, expected {'0' * 64}, as web.mf says" in refusal(export)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("web%2001-disk2.vmdk", "../disk2.vmdk", 'href: found "../disk2.vmdk", expected a file beside the descriptor'),
        ("web%2001-disk2.vmdk", "%2e%2e/disk2.vmdk", "expected a file beside the descriptor"),
        ("web%2001-disk2.vmdk", "/etc/passwd", "expected a file beside the descriptor"),
        ("web%2001-disk2.vmdk", "https://host/disk2.vmdk", "expected a file beside the descriptor"),
        ("web%2001-disk2.vmdk", "none.vmdk", "none.vmdk: found No such file or directory"),
        ("web%2001-disk2.vmdk", "web.ovf", 'found a ".ovf" file, expected one of .vmdk'),
        ("web%2001-disk2.vmdk", "web%2001-disk1.vmdk", "disks[1].local_path: found"),
        ('ovf:id="file2"', 'ovf:id="file2" ovf:compression="gzip"', "a compressed or divided file"),
        ('ovf:fileRef="file2"', "", "disk Hard disk 2: found no file: an empty disk"),
        ('ovf:diskId="vmdisk2"', 'ovf:diskId="other"', "expected a disk of the DiskSection"),
        ('ovf:capacity="8388608"', 'ovf:capacity="8 GB"', 'capacity: found "8 GB", expected an integer'),
        ("MegaBytes", "pages", 'memory: AllocationUnits: found "pages", expected bytes'),
        ("<rasd:VirtualQuantity>4<", "<rasd:VirtualQuantity>0<", "vm.cpu: found 0, expected at least 1"),
        ('<VirtualSystem ovf:id="vm">', "<VirtualSystem/><VirtualSystem>", "2 virtual systems in Envelope"),
        ("</Envelope>", "", "expected XML (line"),
        ("<Envelope", "<!DOCTYPE x [<!ENTITY a 'aa'>]><Envelope", "found a document type"),
        ("<DiskSection>", "<DiskSection>" + "<a>" * 40 + "</a>" * 40, "32 levels"),
        ("<DiskSection>", "<DiskSection>" + "<a/>" * 50_001, "more than 50000 elements"),
    ],
)
def test_a_descriptor_that_is_wrong_or_hostile_is_refused_in_words(export, old, new, said):
    descriptor = export / "web.ovf"
    assert old in VMWARE
    descriptor.write_text(VMWARE.replace(old, new))
    assert said in refusal(export)


def test_a_folder_without_disks_or_with_two_descriptors_is_refused(tmp_path, export):
    (export / "other.ovf").write_text(VMWARE)
    assert "other.ovf, web.ovf, expected one OVF descriptor" in refusal(export)
    (tmp_path / "empty").mkdir()
    assert "found neither, expected an OVF descriptor or disk images (.vmdk" in refusal(tmp_path / "empty")


def test_what_is_no_file_of_the_folder_is_refused(tmp_path):
    image(tmp_path / "good.raw")
    (tmp_path / "link.raw").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "fifo.raw")
    (tmp_path / "folder.raw").mkdir()
    said = refusal(tmp_path)
    for name in ("fifo.raw", "folder.raw"):
        assert f"{name}: found" in said
    (tmp_path / "fifo.raw").unlink()
    (tmp_path / "folder.raw").rmdir()
    assert "link.raw: found a link to elsewhere, expected a file in its folder" in refusal(tmp_path)
