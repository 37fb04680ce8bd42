package main

import (
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// A guest takes a moment to shut down and to start, so that a client that does not wait is found out.
const guestMoment = 700 * time.Millisecond

// machineFault is one thing that is wrong with a VM until DELETE /machines/faults: JSON form of POST /machines/faults.
type machineFault struct {
	VM   string `json:"vm"`   // unescaped name
	Kind string `json:"kind"` // one of machineFaults
}

// tools-unavailable: Tools have just ended, and the inventory does not tell yet. question: one waits for an answer.
var machineFaults = []string{
	"ignores-shutdown", "no-tools", "tools-unavailable", "no-power-on", "no-power-off", "question",
}

func (f *machineFault) check() error {
	if f.VM == "" {
		return fmt.Errorf("no vm")
	}
	return oneOf("kind", f.Kind, machineFaults...)
}

// machines answers what the simulator plays too simply for a cutover: guests that shut down, power, names, network
// cards. access.handle sends these calls here, as it does to the exporter.
type machines struct {
	Self types.ManagedObjectReference

	mu     sync.Mutex
	faults []machineFault
	deaf   map[types.ManagedObjectReference]bool   // guests that the inventory says ignore a shutdown
	tools  map[types.ManagedObjectReference]string // what Tools said before the VM went off
}

var machinesRef = types.ManagedObjectReference{Type: "HyperflowMachines", Value: "machines"}

func newMachines(deaf map[types.ManagedObjectReference]bool) *machines {
	return &machines{Self: machinesRef, deaf: deaf, tools: map[types.ManagedObjectReference]string{}}
}

// Reference makes it an object that the simulator's registry can hold.
func (m *machines) Reference() types.ManagedObjectReference { return m.Self }

// PutObject is called for each new object; nothing is to be done.
func (m *machines) PutObject(*simulator.Context, mo.Reference) {}

// RemoveObject is called for each object that goes; nothing is to be done.
func (m *machines) RemoveObject(*simulator.Context, types.ManagedObjectReference) {}

// UpdateObject changes a VM's changeVersion with its name and its snapshots, as vSphere does; the simulator itself does
// so with ReconfigVM_Task only.
func (m *machines) UpdateObject(ctx *simulator.Context, object mo.Reference, changes []types.PropertyChange) {
	if object.Reference().Type != "VirtualMachine" {
		return
	}
	vm, ok := ctx.Map.Get(object.Reference()).(*simulator.VirtualMachine)
	if !ok || vm.Config == nil {
		return
	}
	if slices.ContainsFunc(changes, func(c types.PropertyChange) bool {
		return c.Name == "name" || c.Name == "snapshot" || strings.HasPrefix(c.Name, "snapshot.")
	}) {
		ctx.Update(vm, []types.PropertyChange{{Name: "config.changeVersion", Val: fmt.Sprint(time.Now().UnixNano())}})
	}
}

func (m *machines) has(vm *simulator.VirtualMachine, kind string) bool {
	name := entityName(vm)
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.faults, machineFault{VM: name, Kind: kind}) || (kind == "ignores-shutdown" && m.deaf[vm.Self])
}

// machine is the VM of a call, or the fault for one that is gone.
func machine(ctx *simulator.Context, ref types.ManagedObjectReference) (*simulator.VirtualMachine, *soap.Fault) {
	vm, ok := ctx.Map.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return nil, simulator.Fault("", &types.ManagedObjectNotFound{Obj: ref})
	}
	return vm, nil
}

// ShutdownGuest has the guest shut down, which takes a moment, or do nothing when it is deaf.
func (m *machines) ShutdownGuest(ctx *simulator.Context, req *types.ShutdownGuest) soap.HasFault {
	body := new(methods.ShutdownGuestBody)
	vm, fault := machine(ctx, req.This)
	if fault != nil {
		body.Fault_ = fault
		return body
	}
	obeys := false
	ctx.WithLock(vm, func() {
		if body.Fault_ = m.hears(vm); body.Fault_ != nil {
			return
		}
		body.Res = new(types.ShutdownGuestResponse)
		if obeys = !m.has(vm, "ignores-shutdown"); obeys {
			ctx.Update(vm, []types.PropertyChange{{Name: "guest.guestState", Val: string(types.VirtualMachineGuestStateShuttingDown)}})
		}
	})
	if !obeys {
		return body
	}
	later(ctx, req.This, func(late *simulator.Context, vm *simulator.VirtualMachine) {
		if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
			m.PowerOffVMTask(late, &types.PowerOffVM_Task{This: vm.Self})
		}
	})
	return body
}

func (m *machines) hears(vm *simulator.VirtualMachine) *soap.Fault {
	if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOn {
		return simulator.Fault("The attempted operation cannot be performed in the current state.", &types.InvalidPowerState{
			RequestedState: types.VirtualMachinePowerStatePoweredOn, ExistingState: vm.Runtime.PowerState,
		})
	}
	running := vm.Guest != nil && vm.Guest.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	if !running || m.has(vm, "tools-unavailable") {
		return simulator.Fault("Cannot complete operation because VMware Tools is not running in this virtual machine.",
			new(types.ToolsUnavailable))
	}
	return nil
}

// later does something to a VM after a moment, when it is still there.
func later(ctx *simulator.Context, ref types.ManagedObjectReference, do func(*simulator.Context, *simulator.VirtualMachine)) {
	late := &simulator.Context{Context: ctx.Context, Map: ctx.Map, Session: ctx.Session}
	time.AfterFunc(guestMoment, func() {
		if vm, ok := late.Map.Get(ref).(*simulator.VirtualMachine); ok {
			late.WithLock(vm, func() { do(late, vm) })
		}
	})
}

// PowerOnVMTask starts a VM; its Tools answer again after a moment.
func (m *machines) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	vm, fault := machine(ctx, req.This)
	if fault != nil {
		return &methods.PowerOnVM_TaskBody{Fault_: fault}
	}
	task := simulator.CreateTask(vm, "powerOn", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if m.has(vm, "no-power-on") {
			return nil, &types.GenericVmConfigFault{Reason: "Failed to power on: the lab's fault no-power-on"}
		}
		if result := inner(ctx, vm.PowerOnVMTask(ctx, req).(*methods.PowerOnVM_TaskBody).Res.Returnval); result != nil {
			return nil, result
		}
		later(ctx, req.This, m.wake)
		return nil, nil
	})
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: task.Run(ctx)}}
}

// PowerOffVMTask switches a VM off, and its Tools with it.
func (m *machines) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	vm, fault := machine(ctx, req.This)
	if fault != nil {
		return &methods.PowerOffVM_TaskBody{Fault_: fault}
	}
	task := simulator.CreateTask(vm, "powerOff", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if m.has(vm, "no-power-off") {
			return nil, &types.GenericVmConfigFault{Reason: "Failed to power off: the lab's fault no-power-off"}
		}
		if result := inner(ctx, vm.PowerOffVMTask(ctx, req).(*methods.PowerOffVM_TaskBody).Res.Returnval); result != nil {
			return nil, result
		}
		m.sleep(ctx, vm)
		return nil, nil
	})
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: task.Run(ctx)}}
}

// inner waits for a task of the simulator's own within one of ours; they share the VM's lock by their context.
func inner(ctx *simulator.Context, ref types.ManagedObjectReference) types.BaseMethodFault {
	task := ctx.Map.Get(ref).(*simulator.Task)
	task.Wait()
	if task.Info.Error != nil {
		return task.Info.Error.Fault
	}
	return nil
}

// sleep sets what Tools no longer say of a VM that is off; the VM is locked.
func (m *machines) sleep(ctx *simulator.Context, vm *simulator.VirtualMachine) {
	if running := string(types.VirtualMachineToolsRunningStatusGuestToolsRunning); vm.Guest.ToolsRunningStatus == running {
		m.mu.Lock()
		m.tools[vm.Self] = running
		m.mu.Unlock()
	}
	setTools(ctx, vm, string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning))
}

// wake lets Tools say what they said before the VM went off; the VM is locked.
func (m *machines) wake(ctx *simulator.Context, vm *simulator.VirtualMachine) {
	m.mu.Lock()
	status, known := m.tools[vm.Self]
	m.mu.Unlock()
	if known && vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn && !m.has(vm, "no-tools") {
		setTools(ctx, vm, status)
	}
}

func setTools(ctx *simulator.Context, vm *simulator.VirtualMachine, status string) {
	guest, health := types.VirtualMachineGuestStateNotRunning, types.VirtualMachineToolsStatusToolsNotRunning
	if status == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning) {
		guest, health = types.VirtualMachineGuestStateRunning, types.VirtualMachineToolsStatusToolsOk
	}
	ctx.Update(vm, []types.PropertyChange{
		{Name: "guest.toolsRunningStatus", Val: status},
		{Name: "guest.toolsStatus", Val: health},
		{Name: "guest.guestState", Val: string(guest)},
		{Name: "summary.guest.toolsRunningStatus", Val: status},
		{Name: "summary.guest.toolsStatus", Val: health},
	})
}

// RenameTask renames a VM. The simulator leaves config.name as it was, and calls a taken name an invalid argument.
func (m *machines) RenameTask(ctx *simulator.Context, req *types.Rename_Task) soap.HasFault {
	vm, fault := machine(ctx, req.This)
	if fault != nil {
		return &methods.Rename_TaskBody{Fault_: fault}
	}
	task := simulator.CreateTask(vm, "rename", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if folder, ok := ctx.Map.Get(*vm.Parent).(*simulator.Folder); ok {
			if other := ctx.Map.FindByName(req.NewName, folder.ChildEntity); other != nil && other.Reference() != vm.Self {
				return nil, &types.DuplicateName{Name: req.NewName, Object: other.Reference()}
			}
		}
		ctx.Update(vm, []types.PropertyChange{
			{Name: "name", Val: req.NewName},
			{Name: "config.name", Val: req.NewName},
			{Name: "summary.config.name", Val: req.NewName},
		})
		return nil, nil
	})
	return &methods.Rename_TaskBody{Res: &types.Rename_TaskResponse{Returnval: task.Run(ctx)}}
}

// ReconfigVMTask changes a configuration: not when the caller's version of it is old, and without the simulator's
// forgetting of addresses and order when a network card is edited.
func (m *machines) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	vm, fault := machine(ctx, req.This)
	if fault != nil {
		return &methods.ReconfigVM_TaskBody{Fault_: fault}
	}
	task := simulator.CreateTask(vm, "reconfigVm", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		if req.Spec.ChangeVersion != "" && req.Spec.ChangeVersion != vm.Config.ChangeVersion {
			return nil, new(types.ConcurrentAccess)
		}
		place := map[int32]int{}
		for i, device := range vm.Config.Hardware.Device {
			place[device.GetVirtualDevice().Key] = i - len(vm.Config.Hardware.Device)
		}
		guest := slices.Clone(vm.Guest.Net)
		if result := inner(ctx, vm.ReconfigVMTask(ctx, req).(*methods.ReconfigVM_TaskBody).Res.Returnval); result != nil {
			return nil, result
		}
		devices := slices.Clone(vm.Config.Hardware.Device)
		sort.SliceStable(devices, func(i, j int) bool {
			return place[devices[i].GetVirtualDevice().Key] < place[devices[j].GetVirtualDevice().Key] // new ones last
		})
		ctx.Update(vm, []types.PropertyChange{
			{Name: "config.hardware.device", Val: devices},
			{Name: "guest.net", Val: guestNet(guest, vm.Guest.Net, devices)},
		})
		return nil, nil
	})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: task.Run(ctx)}}
}

// guestNet is what Tools say of the cards that are left: what they said before, and whether each is connected now.
func guestNet(before, after []types.GuestNicInfo, devices []types.BaseVirtualDevice) []types.GuestNicInfo {
	connected := map[int32]bool{}
	for _, device := range devices {
		if card := device.GetVirtualDevice(); card.Connectable != nil {
			connected[card.Key] = card.Connectable.Connected
		}
	}
	var net []types.GuestNicInfo
	for _, entry := range after {
		i := slices.IndexFunc(before, func(old types.GuestNicInfo) bool { return old.DeviceConfigId == entry.DeviceConfigId })
		if i >= 0 {
			entry = before[i]
		}
		entry.Connected = connected[entry.DeviceConfigId]
		net = append(net, entry)
	}
	return net
}

// stepOff has a VM stand on no snapshot when the one that it stands on is removed and has none before it. The simulator
// ends in a panic there, unless it removes the last one.
func stepOff(ctx *simulator.Context, method *simulator.Method) {
	snapshot, ok := ctx.Map.Get(method.This).(*simulator.VirtualMachineSnapshot)
	if !ok || method.Name != "RemoveSnapshot_Task" {
		return
	}
	vm, ok := ctx.Map.Get(snapshot.Vm).(*simulator.VirtualMachine)
	if !ok {
		return
	}
	ctx.WithLock(vm, func() {
		info := vm.Snapshot
		if info == nil || info.CurrentSnapshot == nil || *info.CurrentSnapshot != method.This {
			return
		}
		if slices.ContainsFunc(info.RootSnapshotList, func(root types.VirtualMachineSnapshotTree) bool {
			return root.Snapshot == method.This
		}) {
			info.CurrentSnapshot = nil
		}
	})
}

// addMachineFault makes a fault, at once visible where it is one that a client reads.
func (a *admin) addMachineFault(w http.ResponseWriter, r *http.Request) {
	var f machineFault
	if !decode(w, r, &f) {
		return
	}
	if err := f.check(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	m := a.access.machines
	m.mu.Lock()
	m.faults = append(m.faults, f)
	m.mu.Unlock()
	switch f.Kind {
	case "question":
		a.eachMachine(f.VM, func(_ *simulator.Context, vm *simulator.VirtualMachine) { vm.Runtime.Question = question() })
	case "no-tools":
		a.eachMachine(f.VM, m.sleep)
	}
	answer(w, f)
}

// clearMachineFaults takes every fault back, and what it had set.
func (a *admin) clearMachineFaults(w http.ResponseWriter, _ *http.Request) {
	m := a.access.machines
	m.mu.Lock()
	faults := m.faults
	m.faults = nil
	m.mu.Unlock()
	for _, f := range faults {
		a.eachMachine(f.VM, func(ctx *simulator.Context, vm *simulator.VirtualMachine) {
			switch f.Kind {
			case "question":
				vm.Runtime.Question = nil
			case "no-tools":
				m.wake(ctx, vm)
			}
		})
	}
	answer(w, []machineFault{})
}

func question() *types.VirtualMachineQuestionInfo {
	return &types.VirtualMachineQuestionInfo{
		Id: "1", Text: "msg.uuid.altered: This virtual machine might have been moved or copied.",
		Choice: types.ChoiceOption{ChoiceInfo: []types.BaseElementDescription{
			&types.ElementDescription{Key: "0", Description: types.Description{Label: "I Moved It", Summary: "moved"}},
			&types.ElementDescription{Key: "1", Description: types.Description{Label: "I Copied It", Summary: "copied"}},
		}},
	}
}

func (a *admin) eachMachine(name string, do func(*simulator.Context, *simulator.VirtualMachine)) {
	ctx := background(a.access.service)
	for _, entity := range ctx.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		ctx.WithLock(vm, func() {
			if name == "" || entityName(vm) == name {
				do(ctx, vm)
			}
		})
	}
}

type machineEntry struct {
	MoRef         string            `json:"moref"`
	Name          string            `json:"name"`
	PowerState    string            `json:"power_state"`
	Tools         string            `json:"tools"`
	ChangeVersion string            `json:"change_version"`
	NICs          []cardEntry       `json:"nics"`
	Attributes    map[string]string `json:"attributes"`
}

type cardEntry struct {
	Key            int32 `json:"key"`
	Connected      bool  `json:"connected"`
	StartConnected bool  `json:"start_connected"`
}

// machineList tells every VM's power, cards and custom attributes.
func (a *admin) machineList() []machineEntry {
	entries := []machineEntry{}
	names := map[int32]string{}
	for _, field := range a.access.service.Context.Map.CustomFieldsManager().Field {
		names[field.Key] = field.Name
	}
	a.eachMachine("", func(_ *simulator.Context, vm *simulator.VirtualMachine) {
		entry := machineEntry{
			MoRef: vm.Self.Value, Name: entityName(vm), PowerState: string(vm.Runtime.PowerState),
			Tools: vm.Guest.ToolsRunningStatus, ChangeVersion: vm.Config.ChangeVersion,
			NICs: []cardEntry{}, Attributes: map[string]string{},
		}
		for _, device := range vm.Config.Hardware.Device {
			card, ok := device.(types.BaseVirtualEthernetCard)
			if !ok {
				continue
			}
			nic := cardEntry{Key: card.GetVirtualEthernetCard().Key}
			if connectable := card.GetVirtualEthernetCard().Connectable; connectable != nil {
				nic.Connected, nic.StartConnected = connectable.Connected, connectable.StartConnected
			}
			entry.NICs = append(entry.NICs, nic)
		}
		for _, value := range vm.CustomValue {
			text := value.(*types.CustomFieldStringValue)
			entry.Attributes[names[text.Key]] = text.Value
		}
		entries = append(entries, entry)
	})
	sort.Slice(entries, func(i, j int) bool { return entries[i].MoRef < entries[j].MoRef })
	return entries
}
