package main

import (
	"fmt"
	"net/url"
	"os"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// exporter answers ExportVm, which the simulator lacks, and ExportSnapshot, whose lease we replace. It is a managed object
// of its own: the simulator casts its VM and snapshot objects to its own types, so those cannot be wrapped.
// access.handle sends the two calls here.
type exporter struct {
	Self       types.ManagedObjectReference
	table      *leaseTable
	url        *url.URL // the server's address
	thumbprint string
	hideSizes  map[deviceID]bool
}

var exporterRef = types.ManagedObjectReference{Type: "HyperflowExporter", Value: "exporter"}

// Reference makes the exporter an object that the simulator's registry can hold.
func (e *exporter) Reference() types.ManagedObjectReference { return e.Self }

// ExportVm opens a lease on all disks of a VM that is not running.
func (e *exporter) ExportVm(ctx *simulator.Context, req *types.ExportVm) soap.HasFault {
	body := new(methods.ExportVmBody)
	vm, ok := ctx.Map.Get(req.This).(*simulator.VirtualMachine)
	if !ok {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: req.This})
		return body
	}
	var l *lease
	var fault *soap.Fault
	ctx.WithLock(vm, func() {
		if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			fault = simulator.Fault("The attempted operation cannot be performed in the current state (Powered on).",
				&types.InvalidPowerState{
					RequestedState: types.VirtualMachinePowerStatePoweredOff,
					ExistingState:  vm.Runtime.PowerState,
				})
			return
		}
		l, fault = e.lease(ctx, vm, vm.Config.Hardware.Device)
	})
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	body.Res = &types.ExportVmResponse{Returnval: e.table.open(ctx, l)}
	return body
}

// ExportSnapshot opens a lease on the disks that a snapshot holds.
func (e *exporter) ExportSnapshot(ctx *simulator.Context, req *types.ExportSnapshot) soap.HasFault {
	body := new(methods.ExportSnapshotBody)
	snapshot, ok := ctx.Map.Get(req.This).(*simulator.VirtualMachineSnapshot)
	if !ok {
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: req.This})
		return body
	}
	vm, ok := ctx.Map.Get(snapshot.Vm).(*simulator.VirtualMachine)
	if !ok { // destroyed; the simulator keeps the snapshot
		body.Fault_ = simulator.Fault("", &types.ManagedObjectNotFound{Obj: req.This})
		return body
	}
	l, fault := e.lease(ctx, vm, snapshot.Config.Hardware.Device)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	l.snapshot = snapshot.Self.Value
	body.Res = &types.ExportSnapshotResponse{Returnval: e.table.open(ctx, l)}
	return body
}

func (e *exporter) lease(ctx *simulator.Context, vm *simulator.VirtualMachine, devices object.VirtualDeviceList) (*lease, *soap.Fault) {
	l := &lease{ticket: randomHex(), vmName: entityName(vm), vm: vm.Self}
	for _, device := range devices {
		disk, ok := device.(*types.VirtualDisk)
		if !ok {
			continue
		}
		backing := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo).GetVirtualDeviceFileBackingInfo()
		file, err := localPath(ctx, backing.FileName)
		if err != nil {
			return nil, simulator.Fault(err.Error(), &types.InvalidDatastorePath{DatastorePath: backing.FileName})
		}
		if _, err := os.Stat(file); err != nil {
			return nil, simulator.Fault("File "+backing.FileName+" was not found",
				&types.FileNotFound{FileFault: types.FileFault{File: backing.FileName}})
		}
		controller := devices.FindByKey(disk.ControllerKey)
		key := fmt.Sprintf("%s%d:%d", reflect.TypeOf(controller).Elem().Name(),
			controller.(types.BaseVirtualController).GetVirtualController().BusNumber, *disk.UnitNumber)
		entry := e.device(l, key, file, fmt.Sprintf("disk-%d.vmdk", len(l.devices)), true)
		entry.capacity = disk.CapacityInBytes
		if e.hideSizes[deviceID{vm.Self, disk.Key}] {
			entry.url.FileSize = 0
		}
		l.devices = append(l.devices, entry)
	}
	// Since 6.7 a real lease also offers the VM's NVRAM: a client that takes every entry for a disk is wrong.
	if file, err := localPath(ctx, strings.TrimSuffix(vm.Config.Files.VmPathName, ".vmx")+".nvram"); err == nil {
		l.devices = append(l.devices, e.device(l, "nvram", file, vm.Self.Value+".nvram", false))
	}
	return l, nil
}

func (e *exporter) device(l *lease, key, file, target string, disk bool) leaseDevice {
	address := *e.url
	address.Path = nfcPrefix + l.ticket + "/" + target
	entry := types.HttpNfcLeaseDeviceUrl{
		Key:           "/" + l.vm.Value + "/" + key,
		ImportKey:     "/" + l.vmName + "/" + key,
		Url:           address.String(),
		SslThumbprint: e.thumbprint,
		Disk:          types.NewBool(disk),
		TargetId:      target,
	}
	if info, err := os.Stat(file); err == nil {
		entry.FileSize = info.Size()
	}
	return leaseDevice{url: entry, path: file}
}
