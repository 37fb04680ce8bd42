"""The lab's vCenter, seen by pyVmomi and by plain HTTPS clients."""

import base64
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import SoapStubAdapter, vim, vmodl

from lab import inventory, vcenter

pytestmark = pytest.mark.lab

PASSWORD = "lab secret with spaces"
LEASE_SECONDS = 300  # only what is about its end has one that is short
HASTY_SECONDS = 6


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    """A stand-in for the guest cache: two small streamOptimized disks with different contents."""
    folder = tmp_path_factory.mktemp("guest")
    disks = []
    for number, megabytes in ((1, 6), (2, 3)):
        raw = folder / f"{number}.raw"
        raw.write_bytes(os.urandom(2 << 20) + bytes((megabytes - 2) << 20))
        file = folder / f"web01-disk{number}.vmdk"
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, file],
            check=True,
        )
        disks.append(
            {
                "file": file.name,
                "capacity_bytes": megabytes << 20,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
        )
    (folder / "guest.json").write_text(json.dumps({"disks": disks}))
    return folder


@contextlib.contextmanager
def serving(guest, folder, lease_seconds):
    inventory.write_inventory(folder / "inventory.json", guest / "guest.json")
    running = vcenter.start(
        folder / "state",
        folder / "inventory.json",
        user=inventory.USER,
        password=PASSWORD,
        lease_timeout_seconds=lease_seconds,
    )
    yield running
    vcenter.stop(running)


@pytest.fixture(scope="module")
def served(guest, tmp_path_factory):
    with serving(guest, tmp_path_factory.mktemp("vcenter"), LEASE_SECONDS) as running:
        yield running


@pytest.fixture(scope="module")
def hasty(guest, tmp_path_factory):
    """Another one, whose leases end soon; not for what has to be done before they do."""
    with serving(guest, tmp_path_factory.mktemp("hasty"), HASTY_SECONDS) as running:
        yield running


@pytest.fixture
def trust(served):
    return ssl.create_default_context(cafile=served.certificate)


@contextlib.contextmanager
def login(server):
    trusted = ssl.create_default_context(cafile=server.certificate)
    instance = SmartConnect(host=server.host, port=server.port, user=inventory.USER, pwd=PASSWORD, sslContext=trusted)
    yield instance.RetrieveContent()
    Disconnect(instance)


@pytest.fixture
def session(served):
    with login(served) as opened:
        yield opened


@pytest.fixture
def hasty_session(hasty):
    with login(hasty) as opened:
        yield opened


def machines(session):
    view = session.viewManager.CreateContainerView(session.rootFolder, [vim.VirtualMachine], True)
    found = list(view.view)
    view.Destroy()
    return found


def machine(session, name):
    (found,) = [vm for vm in machines(session) if vm.name == name]
    return found


def properties(session, managed, paths):
    collector = vmodl.query.PropertyCollector
    spec = collector.FilterSpec(
        objectSet=[collector.ObjectSpec(obj=managed)],
        propSet=[collector.PropertySpec(type=type(managed), pathSet=paths)],
    )
    (content,) = session.propertyCollector.RetrieveContents([spec])
    assert not content.missingSet
    return {entry.name: entry.val for entry in content.propSet}


def done(task):
    while task.info.state not in ("success", "error"):
        time.sleep(0.02)
    if task.info.state == "error":
        raise task.info.error
    return task.info.result


def ready(lease):
    while lease.state == "initializing":
        time.sleep(0.02)
    assert lease.state == "ready"
    return lease


def disk_urls(lease):
    return [entry for entry in lease.info.deviceUrl if entry.disk]


def download(url, trust):
    with urllib.request.urlopen(url, context=trust, timeout=60) as answer:  # noqa: S310 - https URLs of the lab
        return answer.read()


@pytest.fixture
def snapshot(session):
    """A snapshot of web01, removed at the end."""
    taken = done(
        machine(session, "web01").CreateSnapshot_Task(name="hyperflow", description="test", memory=False, quiesce=True)
    )
    yield taken
    done(taken.RemoveSnapshot_Task(removeChildren=False))


def test_refuses_a_wrong_password_a_wrong_user_and_a_made_up_token(served, trust):
    for user, password in ((inventory.USER, "wrong"), ("root", PASSWORD), (inventory.USER, "")):
        with pytest.raises(vim.fault.InvalidLogin):
            SmartConnect(host=served.host, port=served.port, user=user, pwd=password, sslContext=trust)
    stub = SoapStubAdapter(served.host, served.port, version="vim.version.v8_0_0_0", sslContext=trust)
    content = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
    with pytest.raises(vim.fault.InvalidLogin):
        content.sessionManager.LoginByToken()
    with pytest.raises(vim.fault.NotAuthenticated):
        _ = content.rootFolder.name
    assert served.admin("GET", "/sessions") == []


def test_shows_a_certificate_that_nothing_trusts_but_that_can_be_pinned(served):
    with pytest.raises(ssl.SSLCertVerificationError):
        SmartConnect(
            host=served.host,
            port=served.port,
            user=inventory.USER,
            pwd=PASSWORD,
            sslContext=ssl.create_default_context(),
        )
    for thumbprint in (served.thumbprint, served.thumbprint_sha1):
        instance = SmartConnect(
            host=served.host, port=served.port, user=inventory.USER, pwd=PASSWORD, thumbprint=thumbprint
        )
        Disconnect(instance)
    der = ssl.PEM_cert_to_DER_cert(served.certificate.read_text())
    assert served.thumbprint.replace(":", "").lower() == hashlib.sha256(der).hexdigest()


def test_tells_nothing_to_who_is_logged_out(served, trust):
    instance = SmartConnect(host=served.host, port=served.port, user=inventory.USER, pwd=PASSWORD, sslContext=trust)
    web01 = machine(instance.RetrieveContent(), "web01")
    Disconnect(instance)
    with pytest.raises(vim.fault.NotAuthenticated):
        _ = web01.name


def test_an_ended_session_is_a_fault_that_a_client_can_tell(served, session):
    web01 = machine(session, "web01")
    assert served.admin("DELETE", "/sessions") == {"ended": 1}
    with pytest.raises(vim.fault.NotAuthenticated):
        web01.CreateSnapshot_Task(name="no", memory=False, quiesce=False)


def test_has_every_property_that_an_inventory_reader_needs(session):
    facts = properties(
        session,
        machine(session, "web01"),
        [
            *("name", "parent", "runtime", "runtime.powerState", "runtime.host", "datastore", "network"),
            *(
                "config.uuid",
                "config.instanceUuid",
                "config.guestId",
                "config.firmware",
                "config.bootOptions",
            ),
            *(
                "config.changeVersion",
                "config.annotation",
                "config.hardware",
                "layoutEx",
                "storage",
                "summary",
            ),
            *("guest", "guest.hostName", "guest.ipAddress", "guest.net", "guest.toolsRunningStatus"),
        ],
    )
    assert facts["name"] == "web01"
    assert facts["parent"].name == "Production"
    assert facts["runtime.powerState"] == "poweredOn"
    assert facts["config.firmware"] == "bios"
    assert facts["config.uuid"] == "4210a000-5c1e-4a00-8000-000000000001"
    assert facts["config.changeVersion"]
    assert (facts["config.hardware"].numCPU, facts["config.hardware"].memoryMB) == (1, 1024)
    assert facts["guest.hostName"] == "web01"
    (nic,) = facts["guest.net"]
    assert (nic.macAddress, list(nic.ipAddress)) == ("00:50:56:9a:10:01", ["192.0.2.10"])
    assert nic.ipConfig.ipAddress[0].prefixLength == 24


def test_has_the_hardware_of_the_inventory_file(session, guest):
    capacities = [disk["capacity_bytes"] for disk in json.loads((guest / "guest.json").read_text())["disks"]]
    devices = machine(session, "web01").config.hardware.device
    (controller,) = [d for d in devices if isinstance(d, vim.vm.device.ParaVirtualSCSIController)]
    disks = [d for d in devices if isinstance(d, vim.vm.device.VirtualDisk)]
    assert [d.capacityInBytes for d in disks] == capacities
    assert [(d.controllerKey, d.unitNumber) for d in disks] == [(controller.key, 0), (controller.key, 1)]
    assert [d.deviceInfo.label for d in disks] == ["Hard disk 1", "Hard disk 2"]
    (card,) = [d for d in devices if isinstance(d, vim.vm.device.VirtualVmxnet3)]
    assert (card.macAddress, card.backing.deviceName) == ("00:50:56:9a:10:01", "VM Network")


def test_has_the_vms_that_a_migration_must_refuse(session):
    def backings(name):
        devices = machine(session, name).config.hardware.device
        return [d.backing for d in devices if isinstance(d, vim.vm.device.VirtualDisk)]

    assert backings("independent01")[1].diskMode == "independent_persistent"
    raw = backings("rdm01")[1]
    assert isinstance(raw, vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo)
    assert raw.compatibilityMode == "physicalMode"
    assert backings("shared01")[1].sharing == "sharingMultiWriter"
    files = {file.name: file.accessible for file in machine(session, "lost01").layoutEx.file}
    assert files["[LocalDS_0] lost01/lost01_1.vmdk"] is False
    with pytest.raises(vim.fault.FileNotFound):
        machine(session, "lost01").ExportVm()
    (node,) = machine(session, "snap01").snapshot.rootSnapshotList
    assert node.name == "before-upgrade"


def test_two_vms_of_one_name_live_in_different_folders(session):
    found = [vm for vm in machines(session) if vm.name == "app01"]
    assert {vm.parent.name for vm in found} == {"Blue", "Green"}
    assert len({vm.config.files.vmPathName for vm in found}) == 2
    path = "DC0/vm/Production/Green/app01"
    assert session.searchIndex.FindByInventoryPath(path).parent.name == "Green"


def test_hostile_names_are_escaped_as_vsphere_does(session, trust):
    vm = machine(session, 'hostile ..%2f"na\'me" é')
    assert vm.parent.name == "Odd names %2f here"
    lease = ready(vm.ExportVm())
    assert download(disk_urls(lease)[0].url, trust).startswith(b"KDMV")
    lease.HttpNfcLeaseComplete()


def test_a_vm_without_a_snapshot_has_none(session):
    assert machine(session, "web01").snapshot is None


def test_a_snapshot_exports_the_bytes_of_each_disk(served, session, snapshot, guest, trust):
    web01 = machine(session, "web01")
    lease = ready(snapshot.ExportSnapshot())
    assert (lease.info.entity, lease.info.leaseTimeout) == (web01, LEASE_SECONDS)
    assert any(not entry.disk for entry in lease.info.deviceUrl)  # the NVRAM, which is not a disk
    for number, entry in enumerate(disk_urls(lease)):
        file = (guest / f"web01-disk{number + 1}.vmdk").read_bytes()
        assert entry.key == f"/{web01._moId}/ParaVirtualSCSIController0:{number}"
        assert entry.targetId == f"disk-{number}.vmdk"
        assert entry.sslThumbprint == served.thumbprint_sha1
        assert entry.fileSize == len(file)
        assert download(entry.url, trust) == file
    lease.HttpNfcLeaseProgress(100)
    assert lease.transferProgress == 100
    manifest = lease.HttpNfcLeaseGetManifest()
    assert [entry.size for entry in manifest] == [entry.fileSize for entry in disk_urls(lease)]
    lease.HttpNfcLeaseComplete()
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        _ = lease.state


def test_the_server_gives_a_sha256_of_what_it_sent(session, snapshot, guest, trust):
    lease = ready(snapshot.ExportSnapshot())
    entry = disk_urls(lease)[1]
    lease.HttpNfcLeaseSetManifestChecksumType([vim.KeyValue(key=entry.key, value="sha256")])
    download(entry.url, trust)
    (told,) = lease.HttpNfcLeaseGetManifest()
    assert (told.key, told.checksumType) == (entry.key, "sha256")
    assert told.checksum == hashlib.sha256((guest / "web01-disk2.vmdk").read_bytes()).hexdigest()
    lease.HttpNfcLeaseComplete()


def test_several_leases_on_one_vm_are_independent(served, session, snapshot, trust):
    first, second = ready(snapshot.ExportSnapshot()), ready(snapshot.ExportSnapshot())
    assert len(served.admin("GET", "/leases")["live"]) == 2
    first.HttpNfcLeaseAbort()
    assert download(disk_urls(second)[1].url, trust).startswith(b"KDMV")
    second.HttpNfcLeaseComplete()
    assert served.admin("GET", "/leases")["live"] == []
    assert [entry["reason"] for entry in served.admin("GET", "/leases")["ended"][-2:]] == [
        "aborted",
        "completed",
    ]


def test_disks_download_in_parallel_each_by_a_lease_of_its_own(session, snapshot, guest, trust):
    leases = [ready(snapshot.ExportSnapshot()) for _ in range(6)]
    urls = [disk_urls(lease)[number % 2].url for number, lease in enumerate(leases)]
    with concurrent.futures.ThreadPoolExecutor(len(urls)) as pool:
        streams = list(pool.map(lambda url: download(url, trust), urls))
    assert streams == [(guest / f"web01-disk{number}.vmdk").read_bytes() for number in (1, 2)] * 3
    for lease in leases:
        lease.HttpNfcLeaseComplete()


def test_a_url_needs_its_ticket_and_dies_with_its_lease(session, snapshot, trust):
    lease = ready(snapshot.ExportSnapshot())
    url = disk_urls(lease)[0].url
    ticket = url.split("/")[-2]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        download(url.replace(ticket, "0" * len(ticket)), trust)
    lease.HttpNfcLeaseComplete()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        download(url, trust)


def test_leases_end_with_their_session(served, trust):
    instance = SmartConnect(host=served.host, port=served.port, user=inventory.USER, pwd=PASSWORD, sslContext=trust)
    ready(machine(instance.RetrieveContent(), "off01").ExportVm())
    Disconnect(instance)
    assert served.admin("GET", "/leases")["live"] == []
    assert served.admin("GET", "/leases")["ended"][-1]["reason"] == "session ended"


def test_a_lease_that_nobody_keeps_alive_times_out_and_cuts_its_download(hasty, hasty_session):
    trust = ssl.create_default_context(cafile=hasty.certificate)
    hasty.admin("POST", "/faults", {"kind": "stall", "offset": 1000})
    lease = ready(machine(hasty_session, "off01").ExportVm())
    with pytest.raises(http.client.IncompleteRead):
        download(disk_urls(lease)[0].url, trust)
    assert lease.state == "error"
    assert isinstance(lease.error, vim.fault.Timedout)
    with pytest.raises(vim.fault.Timedout):
        lease.HttpNfcLeaseProgress(1)


def test_progress_keeps_a_lease_alive_beyond_its_timeout(hasty, hasty_session):
    lease = ready(machine(hasty_session, "off01").ExportVm())
    (opened,) = hasty.admin("GET", "/leases")["live"]
    until = time.monotonic() + HASTY_SECONDS + 1
    while time.monotonic() < until:
        lease.HttpNfcLeaseProgress(10)
        time.sleep(0.2)
    (live,) = hasty.admin("GET", "/leases")["live"]
    assert (live["moref"], live["percent"]) == (opened["moref"], 10)
    lease.HttpNfcLeaseComplete()


def test_export_vm_takes_a_vm_that_is_off_and_refuses_one_that_runs(session, guest, trust):
    lease = ready(machine(session, "off01").ExportVm())
    (disk,) = disk_urls(lease)
    assert download(disk.url, trust) == (guest / "web01-disk2.vmdk").read_bytes()
    lease.HttpNfcLeaseComplete()
    with pytest.raises(vim.fault.InvalidPowerState):
        machine(session, "web01").ExportVm()


def test_a_disk_made_by_the_lab_is_a_valid_vmdk_whose_size_the_lease_may_hide(session, trust, tmp_path):
    lease = ready(machine(session, "db01").ExportVm())
    entry = disk_urls(lease)[1]
    assert not entry.fileSize
    file = tmp_path / "disk.vmdk"
    file.write_bytes(download(entry.url, trust))
    lease.HttpNfcLeaseComplete()
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", file, raw], check=True)
    assert raw.stat().st_size == inventory.SMALL_DISK
    assert raw.read_bytes().rstrip(b"\0") == b"db01 disk 1\n"


@pytest.fixture
def stream(session, guest, trust):
    """Downloads off01's disk once; the file as it should be."""
    lease = ready(machine(session, "off01").ExportVm())
    yield lambda: download(disk_urls(lease)[0].url, trust), (guest / "web01-disk2.vmdk").read_bytes()
    lease.HttpNfcLeaseComplete()


def test_a_flipped_byte_is_one_byte_of_one_download(served, stream):
    fetch, whole = stream
    served.admin("POST", "/faults", {"kind": "flip", "vm": "off01", "target": "disk-0.vmdk", "offset": 70000})
    broken = fetch()
    assert [i for i in range(len(whole)) if broken[i] != whole[i]] == [70000]
    assert fetch() == whole


def test_a_cut_download_breaks_and_a_truncated_one_looks_whole(served, stream):
    fetch, whole = stream
    served.admin("POST", "/faults", {"kind": "cut", "offset": 100000})
    with pytest.raises(http.client.IncompleteRead) as broken:
        fetch()
    assert broken.value.partial == whole[:100000]
    served.admin("POST", "/faults", {"kind": "truncate", "offset": -512})
    assert fetch() == whole[:-512]


def test_a_status_is_answered_as_often_as_asked_and_only_to_the_vm_meant(served, stream):
    fetch, whole = stream
    served.admin("POST", "/faults", {"kind": "status", "status": 503, "count": 2, "vm": "off01"})
    served.admin("POST", "/faults", {"kind": "status", "status": 500, "vm": "another"})
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError, match="503"):
            fetch()
    assert fetch() == whole
    assert [fault["vm"] for fault in served.admin("GET", "/faults")] == ["another"]
    assert served.admin("DELETE", "/faults") == []


def test_a_stall_goes_on_after_its_time_and_a_throttle_loses_nothing(served, stream):
    fetch, whole = stream
    served.admin("POST", "/faults", {"kind": "stall", "offset": 5000, "seconds": 1})
    assert fetch() == whole
    served.admin("POST", "/throttle", {"bytes_per_second": 4 * len(whole)})
    assert fetch() == whole
    assert served.admin("POST", "/throttle", {"bytes_per_second": 0}) == {"bytes_per_second": 0}


def test_a_wrong_fault_is_refused(served):
    for wrong in ({"kind": "explode"}, {"kind": "status", "status": 200}, {"kind": "flip", "where": 1}):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            served.admin("POST", "/faults", wrong)
    assert served.admin("GET", "/faults") == []


def test_the_admin_listener_shows_a_snapshot_until_it_is_removed(served, session):
    taken = done(machine(session, "off01").CreateSnapshot_Task(name="left behind", memory=False, quiesce=False))
    assert [s["name"] for s in served.admin("GET", "/snapshots") if s["vm"] == "off01"] == ["left behind"]
    done(taken.RemoveSnapshot_Task(removeChildren=False))
    assert [s["vm"] for s in served.admin("GET", "/snapshots")] == ["snap01"]


def test_datastore_files_need_credentials_and_cannot_be_written(served, guest, trust):
    url = f"https://{served.host}:{served.port}/folder/web01/web01.vmdk?dcPath=DC0&dsName=LocalDS_0"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        download(url, trust)
    basic = base64.b64encode(f"{inventory.USER}:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {basic}"})
    assert download(request, trust) == (guest / "web01-disk1.vmdk").read_bytes()
    request = urllib.request.Request(url, data=b"x", method="PUT", headers={"Authorization": f"Basic {basic}"})
    with pytest.raises(urllib.error.HTTPError, match="405"):
        download(request, trust)


def test_ends_cleanly_keeps_its_certificate_and_clears_what_a_killed_one_left(guest, tmp_path):
    inventory.write_inventory(tmp_path / "inventory.json", guest / "guest.json")
    state = tmp_path / "state"

    def begin():
        return vcenter.start(state, tmp_path / "inventory.json", user=inventory.USER, password=PASSWORD)

    first = begin()
    with pytest.raises(vcenter.LabError, match="belongs to a vCenter that runs"):
        begin()
    vcenter.stop(first)
    left = {path.name for path in state.iterdir()}
    assert left == {"cert.pem", "key.pem", "lock", "password", "vcenter.log"}
    second = begin()
    os.kill(second.pid, 9)
    os.waitpid(second.pid, 0)
    assert vcenter.running(state) is None
    third = begin()
    assert third.thumbprint == first.thumbprint
    assert len(list((state / "datastores").iterdir())) == 1
    vcenter.stop(third)
    assert (
        hashlib.sha256((guest / "web01-disk1.vmdk").read_bytes()).hexdigest()
        == (json.loads((guest / "guest.json").read_text())["disks"][0]["sha256"])
    )


def test_a_mistake_in_the_inventory_is_told(tmp_path):
    (tmp_path / "inventory.json").write_text('{"vms": [{"name": "x", "colour": "red"}]}')
    with pytest.raises(vcenter.LabError, match='unknown field "colour"'):
        vcenter.start(tmp_path / "state", tmp_path / "inventory.json", user="u", password="p")
