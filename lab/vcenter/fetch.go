package main

import (
	"reflect"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// fetcher answers Fetch, the call behind every property that pyVmomi reads by attribute (vm.snapshot). The simulator
// answers it for a property that is not set with the response of another method, on which pyVmomi fails; vCenter
// answers with nothing, and the attribute is None.
type fetcher struct {
	Self types.ManagedObjectReference
}

var fetcherRef = types.ManagedObjectReference{Type: "HyperflowFetcher", Value: "fetcher"}

// Reference makes the fetcher an object that the simulator's registry can hold.
func (f *fetcher) Reference() types.ManagedObjectReference { return f.Self }

// FetchResponse is named as the element that it becomes.
type FetchResponse struct{}

type emptyFetch struct {
	Res *FetchResponse `xml:"FetchResponse,omitempty"`
}

// Fault is none: nothing failed.
func (*emptyFetch) Fault() *soap.Fault { return nil }

// Fetch takes any request because govmomi keeps the type of this one internal.
func (f *fetcher) Fetch(ctx *simulator.Context, request any) soap.HasFault {
	ref := ctx.Map.Get(vim25.ServiceInstance).(*simulator.ServiceInstance).Content.PropertyCollector
	collector := ctx.Map.Get(ref)
	if ctx.Session != nil {
		collector = ctx.Session.Get(ref) // it also finds the session's own objects: leases, views
	}
	args := []reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(request)}
	answer := reflect.ValueOf(collector).MethodByName("Fetch").Call(args)[0].Interface().(soap.HasFault)
	if answer.Fault() == nil && reflect.TypeOf(answer).Elem().Name() != "FetchBody" {
		return &emptyFetch{Res: new(FetchResponse)}
	}
	return answer
}
