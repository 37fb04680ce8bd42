package main

import (
	"net/http"
	"slices"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// privileges are what the user's role lacks. The simulator knows roles and asks nobody for one.
type privileges struct {
	Self types.ManagedObjectReference

	mu      sync.Mutex
	missing []string
}

var privilegesRef = types.ManagedObjectReference{Type: "HyperflowPrivileges", Value: "privileges"}

// needed is what vSphere asks for, by method (vSphere API reference, "Required Privileges").
var needed = map[string][]string{
	"AddCustomFieldDef":   {"Global.ManageCustomFields"},
	"CreateSnapshot_Task": {"VirtualMachine.State.CreateSnapshot"},
	"ExportSnapshot":      {"VApp.Export"},
	"ExportVm":            {"VApp.Export"},
	"PowerOffVM_Task":     {"VirtualMachine.Interact.PowerOff"},
	"PowerOnVM_Task":      {"VirtualMachine.Interact.PowerOn"},
	"RemoveSnapshot_Task": {"VirtualMachine.State.RemoveSnapshot"},
	"Rename_Task":         {"VirtualMachine.Config.Rename"},
	"SetField":            {"Global.SetCustomField"},
	"ShutdownGuest":       {"VirtualMachine.Interact.PowerOff"},
	// Of a reconfiguration only what a cutover does: devices edited, cards connected or not.
	"ReconfigVM_Task": {"VirtualMachine.Config.EditDevice", "VirtualMachine.Interact.DeviceConnection"},
}

// Reference makes it an object that the simulator's registry can hold.
func (p *privileges) Reference() types.ManagedObjectReference { return p.Self }

func (p *privileges) lacks(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.missing, id)
}

// refusal is the fault for a call that the user's role does not allow, or nil.
func (p *privileges) refusal(method *simulator.Method) types.BaseMethodFault {
	for _, id := range needed[method.Name] {
		if p.lacks(id) {
			return &types.NoPermission{Object: &method.This, PrivilegeId: id}
		}
	}
	return nil
}

// HasPrivilegeOnEntities answers by the same list that refuses the calls.
func (p *privileges) HasPrivilegeOnEntities(ctx *simulator.Context, req *types.HasPrivilegeOnEntities) soap.HasFault {
	var all []types.EntityPrivilege
	for _, entity := range req.Entity {
		if ctx.Map.Get(entity) == nil {
			return &methods.HasPrivilegeOnEntitiesBody{Fault_: simulator.Fault("", &types.ManagedObjectNotFound{Obj: entity})}
		}
		of := types.EntityPrivilege{Entity: entity}
		for _, id := range req.PrivId {
			of.PrivAvailability = append(of.PrivAvailability, types.PrivilegeAvailability{PrivId: id, IsGranted: !p.lacks(id)})
		}
		all = append(all, of)
	}
	return &methods.HasPrivilegeOnEntitiesBody{Res: &types.HasPrivilegeOnEntitiesResponse{Returnval: all}}
}

// setPrivileges takes privileges from the user's role; an empty list gives all back.
func (a *admin) setPrivileges(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Missing []string `json:"missing"`
	}
	if !decode(w, r, &request) {
		return
	}
	p := a.access.privileges
	p.mu.Lock()
	p.missing = request.Missing
	p.mu.Unlock()
	answer(w, request)
}
