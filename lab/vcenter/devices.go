package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Device keys as vSphere gives them: SCSI controllers from 1000, disks from 2000, network cards from 4000.
const (
	firstController = 1000
	firstDisk       = 2000
	firstCard       = 4000
	pciController   = 100
)

// deviceID names one device of one VM.
type deviceID struct {
	vm  types.ManagedObjectReference
	key int32
}

func diskKey(index int) int32 { return firstDisk + int32(index) }

// devices is the VM's hardware in vSphere's order: controllers, disks, network cards.
func (b *builder) devices(spec *vmSpec, files []string) ([]types.BaseVirtualDeviceConfigSpec, error) {
	var controllers, disks object.VirtualDeviceList
	byKind := map[string]*types.VirtualController{}
	units := map[string]int32{}
	for i, disk := range spec.Disks {
		if byKind[disk.Controller] == nil {
			device, controller, err := newController(disk.Controller, int32(len(controllers)))
			if err != nil {
				return nil, err
			}
			controllers = append(controllers, device)
			byKind[disk.Controller] = controller
		}
		controller := byKind[disk.Controller]
		unit := units[disk.Controller]
		if unit == 7 { // SCSI id 7 is the controller itself
			unit++
		}
		if unit > 15 {
			return nil, fmt.Errorf("more than 15 disks on controller %s", disk.Controller)
		}
		units[disk.Controller] = unit + 1
		controller.Device = append(controller.Device, diskKey(i))
		disks = append(disks, newDisk(disk, i, files[i], controller.Key, unit))
	}
	all := append(controllers, disks...)
	for i, nic := range spec.NICs {
		card, err := b.card(nic, i)
		if err != nil {
			return nil, err
		}
		all = append(all, card)
	}
	var changes []types.BaseVirtualDeviceConfigSpec
	for _, device := range all {
		// Without a FileOperation: the disk's file is there already.
		changes = append(changes, &types.VirtualDeviceConfigSpec{Operation: "add", Device: device})
	}
	return changes, nil
}

func newController(kind string, bus int32) (types.BaseVirtualDevice, *types.VirtualController, error) {
	device, err := object.VirtualDeviceList{}.CreateSCSIController(kind)
	if err != nil {
		return nil, nil, err
	}
	scsi := device.(types.BaseVirtualSCSIController).GetVirtualSCSIController()
	scsi.Key, scsi.BusNumber, scsi.ControllerKey = firstController+bus, bus, pciController
	scsi.UnitNumber = types.NewInt32(3 + bus)
	scsi.DeviceInfo = &types.Description{Label: fmt.Sprintf("SCSI controller %d", bus)}
	return device, &scsi.VirtualController, nil
}

func newDisk(spec diskSpec, index int, file string, controller, unit int32) *types.VirtualDisk {
	return &types.VirtualDisk{
		CapacityInBytes: spec.CapacityBytes,
		CapacityInKB:    spec.CapacityBytes / 1024,
		VirtualDevice: types.VirtualDevice{
			Key: diskKey(index), ControllerKey: controller, UnitNumber: types.NewInt32(unit),
			DeviceInfo: &types.Description{Label: spec.Label},
			Backing: &types.VirtualDiskFlatVer2BackingInfo{
				VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: file},
				DiskMode:                     spec.Mode,
				ThinProvisioned:              types.NewBool(spec.Thin),
			},
		},
	}
}

func (b *builder) card(spec nicSpec, index int) (types.BaseVirtualDevice, error) {
	// Not with a finder: it would take a name's "*" or "/" for a pattern or a path.
	found := b.ctx.Map.FindByName(spec.Network, b.networks())
	if found == nil {
		return nil, fmt.Errorf("there is no network %q", spec.Network)
	}
	network, ok := object.NewReference(b.client, found.Reference()).(object.NetworkReference)
	if !ok {
		return nil, fmt.Errorf("%q is not a network that a card can use", spec.Network)
	}
	backing, err := network.EthernetCardBackingInfo(b.ctx)
	if err != nil {
		return nil, err
	}
	device, err := object.EthernetCardTypes().CreateEthernetCard(spec.Type, backing)
	if err != nil {
		return nil, err
	}
	card := device.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard()
	card.Key, card.ControllerKey = firstCard+int32(index), pciController
	card.UnitNumber = types.NewInt32(7 + int32(index))
	card.MacAddress, card.AddressType = spec.MAC, "manual"
	card.DeviceInfo = &types.Description{Label: spec.Label}
	card.Connectable = &types.VirtualDeviceConnectInfo{
		StartConnected: !spec.Disconnected, Connected: !spec.Disconnected, AllowGuestControl: true,
	}
	return device, nil
}

// setBackings gives disks what the simulator's own device code does not take.
func setBackings(spec *vmSpec, vm *simulator.VirtualMachine) {
	for _, device := range vm.Config.Hardware.Device {
		disk, ok := device.(*types.VirtualDisk)
		if !ok {
			continue
		}
		index := int(disk.Key - firstDisk)
		if index < 0 || index >= len(spec.Disks) {
			continue
		}
		flat := disk.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		flat.Sharing = spec.Disks[index].Sharing
		if spec.Disks[index].RDM {
			disk.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{
				VirtualDeviceFileBackingInfo: flat.VirtualDeviceFileBackingInfo,
				LunUuid:                      strings.ReplaceAll(flat.Uuid, "-", ""),
				DeviceName:                   "vml.0200000000" + strings.ReplaceAll(flat.Uuid, "-", ""),
				CompatibilityMode:            string(types.VirtualDiskCompatibilityModePhysicalMode),
				DiskMode:                     "independent_persistent",
				Uuid:                         flat.Uuid,
				Sharing:                      flat.Sharing,
			}
		}
	}
}

// setGuest sets what VMware Tools would report.
func setGuest(spec *vmSpec, vm *simulator.VirtualMachine) {
	guest := &types.GuestInfo{
		ToolsStatus:        types.VirtualMachineToolsStatusToolsNotRunning,
		ToolsRunningStatus: string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning),
		GuestState:         string(types.VirtualMachineGuestStateNotRunning),
	}
	if facts := spec.Guest; facts != nil {
		guest.HostName, guest.IpAddress = facts.HostName, facts.IPAddress
		guest.ToolsRunningStatus = facts.ToolsRunningStatus
		guest.GuestId, guest.GuestFullName = spec.GuestID, vm.Config.GuestFullName
		guest.GuestFamily = string(types.VirtualMachineGuestOsFamilyLinuxGuest)
		if facts.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
			guest.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
			guest.ToolsVersion = "12320"
			guest.GuestState = string(types.VirtualMachineGuestStateRunning)
		}
		for _, entry := range facts.Net {
			guest.Net = append(guest.Net, guestNIC(entry, spec))
		}
	}
	vm.Guest = guest
	vm.Summary.Guest = &types.VirtualMachineGuestSummary{
		GuestId: guest.GuestId, GuestFullName: guest.GuestFullName, HostName: guest.HostName,
		IpAddress: guest.IpAddress, ToolsStatus: guest.ToolsStatus, ToolsRunningStatus: guest.ToolsRunningStatus,
	}
}

func guestNIC(spec guestNetSpec, vm *vmSpec) types.GuestNicInfo {
	info := types.GuestNicInfo{
		Network: spec.Network, MacAddress: spec.MAC, Connected: true, DeviceConfigId: -1,
		IpConfig: &types.NetIpConfigInfo{},
	}
	for i, nic := range vm.NICs {
		if strings.EqualFold(nic.MAC, spec.MAC) {
			info.DeviceConfigId = firstCard + int32(i)
		}
	}
	for _, address := range spec.IPAddresses {
		ip, length, found := strings.Cut(address, "/")
		prefix, err := strconv.Atoi(length)
		if !found || err != nil {
			prefix = 32
			if parsed := net.ParseIP(ip); parsed != nil && parsed.To4() == nil {
				prefix = 128
			}
		}
		info.IpAddress = append(info.IpAddress, ip)
		info.IpConfig.IpAddress = append(info.IpConfig.IpAddress, types.NetIpConfigInfoIpAddress{
			IpAddress: ip, PrefixLength: int32(prefix), State: "preferred",
		})
	}
	return info
}
