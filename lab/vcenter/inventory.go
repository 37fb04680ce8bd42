package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// inventory is what the simulated vCenter holds: data, so that a test adds a VM without a line of Go.
// Names follow vSphere's properties where vSphere has one.
type inventory struct {
	Networks []networkSpec `json:"networks"`
	VMs      []vmSpec      `json:"vms"`
}

// networkSpec is only needed for a network that is not a standard one: a NIC's unknown network is made as standard.
type networkSpec struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // standard (default) or distributed
}

type vmSpec struct {
	Name          string     `json:"name"`
	Folder        string     `json:"folder"` // inventory path, /DC0/vm/...; a "/" inside a folder's name is %2f
	GuestID       string     `json:"guestId"`
	GuestFullName string     `json:"guestFullName"`
	Firmware      string     `json:"firmware"` // bios (default) or efi
	SecureBoot    bool       `json:"secureBoot"`
	UUID          string     `json:"uuid"`
	InstanceUUID  string     `json:"instanceUuid"`
	CPUs          int32      `json:"cpus"`
	MemoryMB      int64      `json:"memory_mb"`
	PowerState    string     `json:"powerState"` // poweredOff (default) or poweredOn
	Annotation    string     `json:"annotation"`
	NICs          []nicSpec  `json:"nics"`
	Disks         []diskSpec `json:"disks"`
	Guest         *guestSpec `json:"guest"`
	Snapshots     []string   `json:"snapshots"` // oldest first, each the child of the one before
}

type nicSpec struct {
	MAC          string `json:"mac"`
	Network      string `json:"network"`
	Type         string `json:"type"` // vmxnet3 (default), e1000e, e1000
	Label        string `json:"label"`
	Disconnected bool   `json:"disconnected"` // also at power on
}

type diskSpec struct {
	File          string `json:"file"` // local VMDK; relative to the inventory file; none: a small disk is made
	CapacityBytes int64  `json:"capacity_bytes"`
	Controller    string `json:"controller"` // pvscsi (default), lsilogic, lsilogic-sas, buslogic
	Mode          string `json:"mode"`       // persistent (default), independent_persistent, independent_nonpersistent
	Sharing       string `json:"sharing"`    // sharingNone (default) or sharingMultiWriter
	RDM           bool   `json:"rdm"`        // a raw device in physical compatibility mode
	Thin          bool   `json:"thin"`
	Label         string `json:"label"`
	Missing       bool   `json:"missing"`        // the file is gone: layoutEx says so, an export fails
	HideFileSize  bool   `json:"hide_file_size"` // the lease says fileSize 0, as real servers often do
}

type guestSpec struct {
	HostName           string         `json:"hostName"`
	IPAddress          string         `json:"ipAddress"`
	ToolsRunningStatus string         `json:"toolsRunningStatus"` // guestToolsRunning (default), guestToolsNotRunning
	IgnoresShutdown    bool           `json:"ignores_shutdown"`
	Net                []guestNetSpec `json:"net"`
}

type guestNetSpec struct {
	Network     string   `json:"network"`
	MAC         string   `json:"mac"`
	IPAddresses []string `json:"ipAddresses"` // "192.0.2.10" or "192.0.2.10/24"
}

// loadInventory reads and checks the file. A mistake in it is found here, not as a panic inside the simulator.
func loadInventory(path string) (*inventory, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var inv inventory
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&inv); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	seen := map[string]bool{}
	for i := range inv.VMs {
		vm := &inv.VMs[i]
		if err := vm.complete(filepath.Dir(path)); err != nil {
			return nil, fmt.Errorf("%s: VM %d (%q): %w", path, i, vm.Name, err)
		}
		place := vm.Folder + "\x00" + vm.Name
		if seen[place] {
			return nil, fmt.Errorf("%s: VM %q is twice in folder %s", path, vm.Name, vm.Folder)
		}
		seen[place] = true
	}
	return &inv, nil
}

// complete sets defaults and refuses what the simulator could not hold.
func (vm *vmSpec) complete(base string) error {
	if vm.Name == "" {
		return fmt.Errorf("no name")
	}
	vm.Folder = orDefault(vm.Folder, "/DC0/vm")
	if _, err := folderNames(vm.Folder); err != nil {
		return err
	}
	vm.GuestID = orDefault(vm.GuestID, "otherGuest")
	vm.Firmware = orDefault(vm.Firmware, "bios")
	vm.PowerState = orDefault(vm.PowerState, "poweredOff")
	if vm.CPUs == 0 {
		vm.CPUs = 1
	}
	if vm.MemoryMB == 0 {
		vm.MemoryMB = 512
	}
	if err := oneOf("firmware", vm.Firmware, "bios", "efi"); err != nil {
		return err
	}
	if err := oneOf("powerState", vm.PowerState, "poweredOff", "poweredOn"); err != nil {
		return err
	}
	for i := range vm.NICs {
		if err := vm.NICs[i].complete(i); err != nil {
			return fmt.Errorf("nic %d: %w", i, err)
		}
	}
	for i := range vm.Disks {
		if err := vm.Disks[i].complete(base, i); err != nil {
			return fmt.Errorf("disk %d: %w", i, err)
		}
	}
	if vm.Guest != nil {
		vm.Guest.ToolsRunningStatus = orDefault(vm.Guest.ToolsRunningStatus, "guestToolsRunning")
	}
	return nil
}

func (nic *nicSpec) complete(index int) error {
	nic.Type = orDefault(nic.Type, "vmxnet3")
	nic.Network = orDefault(nic.Network, "VM Network")
	nic.Label = orDefault(nic.Label, fmt.Sprintf("Network adapter %d", index+1))
	if _, err := net.ParseMAC(nic.MAC); err != nil {
		return err
	}
	return oneOf("type", nic.Type, "vmxnet3", "e1000e", "e1000")
}

func (disk *diskSpec) complete(base string, index int) error {
	disk.Controller = orDefault(disk.Controller, "pvscsi")
	disk.Mode = orDefault(disk.Mode, "persistent")
	disk.Sharing = orDefault(disk.Sharing, "sharingNone")
	disk.Label = orDefault(disk.Label, fmt.Sprintf("Hard disk %d", index+1))
	if disk.File != "" {
		if !filepath.IsAbs(disk.File) {
			disk.File = filepath.Join(base, disk.File)
		}
		if info, err := os.Stat(disk.File); err != nil {
			return err
		} else if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a regular file", disk.File)
		}
		if disk.CapacityBytes <= 0 {
			return fmt.Errorf("capacity_bytes is needed for a disk with a file")
		}
	}
	if disk.CapacityBytes == 0 {
		disk.CapacityBytes = 64 << 20
	}
	if disk.CapacityBytes%grainBytes != 0 {
		return fmt.Errorf("capacity_bytes %d is not a multiple of %d", disk.CapacityBytes, grainBytes)
	}
	if err := oneOf("controller", disk.Controller, "pvscsi", "lsilogic", "lsilogic-sas", "buslogic"); err != nil {
		return err
	}
	if err := oneOf("mode", disk.Mode, "persistent", "independent_persistent", "independent_nonpersistent"); err != nil {
		return err
	}
	return oneOf("sharing", disk.Sharing, "sharingNone", "sharingMultiWriter")
}

// folderNames splits /DC0/vm/A%2fB/C into the names below the VM folder: ["A/B", "C"].
func folderNames(path string) ([]string, error) {
	rest, ok := strings.CutPrefix(path, "/DC0/vm")
	if !ok || (rest != "" && rest[0] != '/') {
		return nil, fmt.Errorf("folder %q is not below /DC0/vm", path)
	}
	var names []string
	for part := range strings.SplitSeq(rest, "/") {
		if part == "" {
			continue
		}
		name, err := url.PathUnescape(part)
		if err != nil {
			return nil, fmt.Errorf("folder %q: %w", path, err)
		}
		names = append(names, name)
	}
	return names, nil
}

func orDefault(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}

func oneOf(field, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fmt.Errorf("%s %q is not one of %s", field, value, strings.Join(allowed, ", "))
}
