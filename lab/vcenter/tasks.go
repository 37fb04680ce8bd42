package main

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// hang makes the next task of a VM last until it is released: JSON form of POST /tasks.
type hang struct {
	Method string `json:"method"` // one of hangs
	VM     string `json:"vm"`
}

var hangs = []string{
	"CreateSnapshot_Task", "RemoveSnapshot_Task", "PowerOnVM_Task", "PowerOffVM_Task", "ReconfigVM_Task", "Rename_Task",
}

// hanger answers in place of the VM or snapshot whose task is to hang. A task of its own, as the simulator holds the
// VM's lock for as long as the VM's task lasts, and a real vCenter answers questions meanwhile.
type hanger struct {
	Self     types.ManagedObjectReference
	machines *machines

	mu       sync.Mutex
	queued   []hang
	released chan struct{}
}

var hangerRef = types.ManagedObjectReference{Type: "HyperflowHanger", Value: "hanger"}

func newHanger() *hanger {
	return &hanger{Self: hangerRef, released: make(chan struct{})}
}

// Reference makes the hanger an object that the simulator's registry can hold.
func (h *hanger) Reference() types.ManagedObjectReference { return h.Self }

func (h *hanger) add(one hang) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queued = append(h.queued, one)
}

// release lets every hanging task do its work, and forgets the hangs to come.
func (h *hanger) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.queued = nil
	close(h.released)
	h.released = make(chan struct{})
}

// takes says whether this call is to hang.
func (h *hanger) takes(ctx *simulator.Context, method *simulator.Method) bool {
	vm, ok := ctx.Map.Get(method.This).(*simulator.VirtualMachine)
	if snapshot, is := ctx.Map.Get(method.This).(*simulator.VirtualMachineSnapshot); is {
		vm, ok = ctx.Map.Get(snapshot.Vm).(*simulator.VirtualMachine)
	}
	if !ok {
		return false
	}
	name := entityName(vm)
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, one := range h.queued {
		if one.Method == method.Name && one.VM == name {
			h.queued = append(h.queued[:i], h.queued[i+1:]...)
			return true
		}
	}
	return false
}

// CreateSnapshotTask hangs, and takes the snapshot when it is released.
func (h *hanger) CreateSnapshotTask(ctx *simulator.Context, req *types.CreateSnapshot_Task) soap.HasFault {
	task := h.task(ctx, "createSnapshot", func(late *simulator.Context) types.ManagedObjectReference {
		vm := late.Map.Get(req.This).(*simulator.VirtualMachine)
		return vm.CreateSnapshotTask(late, req).(*methods.CreateSnapshot_TaskBody).Res.Returnval
	})
	return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{Returnval: task}}
}

// RemoveSnapshotTask hangs, and removes the snapshot when it is released.
func (h *hanger) RemoveSnapshotTask(ctx *simulator.Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	task := h.task(ctx, "removeSnapshot", func(late *simulator.Context) types.ManagedObjectReference {
		snapshot := late.Map.Get(req.This).(*simulator.VirtualMachineSnapshot)
		return snapshot.RemoveSnapshotTask(late, req).(*methods.RemoveSnapshot_TaskBody).Res.Returnval
	})
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{Returnval: task}}
}

// PowerOnVMTask hangs, and starts the VM when it is released.
func (h *hanger) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	task := h.task(ctx, "powerOn", func(late *simulator.Context) types.ManagedObjectReference {
		return h.machines.PowerOnVMTask(late, req).(*methods.PowerOnVM_TaskBody).Res.Returnval
	})
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: task}}
}

// PowerOffVMTask hangs, and switches the VM off when it is released.
func (h *hanger) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	task := h.task(ctx, "powerOff", func(late *simulator.Context) types.ManagedObjectReference {
		return h.machines.PowerOffVMTask(late, req).(*methods.PowerOffVM_TaskBody).Res.Returnval
	})
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: task}}
}

// ReconfigVMTask hangs, and changes the configuration when it is released.
func (h *hanger) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	task := h.task(ctx, "reconfigVm", func(late *simulator.Context) types.ManagedObjectReference {
		return h.machines.ReconfigVMTask(late, req).(*methods.ReconfigVM_TaskBody).Res.Returnval
	})
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: task}}
}

// RenameTask hangs, and renames the VM when it is released.
func (h *hanger) RenameTask(ctx *simulator.Context, req *types.Rename_Task) soap.HasFault {
	task := h.task(ctx, "rename", func(late *simulator.Context) types.ManagedObjectReference {
		return h.machines.RenameTask(late, req).(*methods.Rename_TaskBody).Res.Returnval
	})
	return &methods.Rename_TaskBody{Res: &types.Rename_TaskResponse{Returnval: task}}
}

// task starts a task that runs until it is released or cancelled; released, it does the work and takes its result.
func (h *hanger) task(ctx *simulator.Context, name string, work func(*simulator.Context) types.ManagedObjectReference) types.ManagedObjectReference {
	h.mu.Lock()
	released := h.released
	h.mu.Unlock()
	service := ctx.Map
	// An entity of its own for each task: the simulator locks it for as long as the task lasts.
	entity := &hanger{Self: types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-" + randomHex()}}
	hanging := simulator.CreateTask(entity, name+"Task", func(t *simulator.Task) (types.AnyType, types.BaseMethodFault) {
		for {
			select {
			case <-released:
				if t.Info.Cancelled {
					return nil, new(types.RequestCanceled)
				}
				late := &simulator.Context{Context: ctx.Context, Map: service, Session: ctx.Session}
				done, _ := late.Map.Get(work(late)).(*simulator.Task)
				done.Wait()
				if done.Info.Error != nil {
					return nil, done.Info.Error.Fault
				}
				return done.Info.Result, nil
			case <-time.After(50 * time.Millisecond):
				if t.Info.Cancelled {
					return nil, new(types.RequestCanceled)
				}
			}
		}
	})
	return hanging.Run(ctx)
}

func (a *admin) addHang(w http.ResponseWriter, r *http.Request) {
	var one hang
	if !decode(w, r, &one) {
		return
	}
	if err := oneOf("method", one.Method, hangs...); err != nil || one.VM == "" {
		http.Error(w, fmt.Sprintf("expected a VM and a task: %v", err), http.StatusBadRequest)
		return
	}
	a.access.hanger.add(one)
	answer(w, one)
}
