package main

import (
	"crypto/subtle"
	"net/http"
	"reflect"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// access decides who may call what. The simulator alone lets anybody log in with a made-up token, read every property
// without a session, and write to the datastore; a lab that did so would not find a client's mistakes.
type access struct {
	service    *simulator.Service
	leases     *leaseTable
	hanger     *hanger
	machines   *machines
	privileges *privileges
	user       string
	password   string
}

func (a *access) validLogin(login *types.Login) bool {
	user := subtle.ConstantTimeCompare([]byte(login.UserName), []byte(a.user))
	password := subtle.ConstantTimeCompare([]byte(login.Password), []byte(a.password))
	return user&password == 1
}

// handle sees every SOAP call before the simulator does (simulator.Registry.Handler). It may send the call to another
// object by changing method.This; returning an object would not, as a session's own lookup comes after.
func (a *access) handle(ctx *simulator.Context, method *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if fault := a.privileges.refusal(method); fault != nil && ctx.Session != nil {
		return nil, fault
	}
	switch method.Name {
	case "LoginByToken", "LoginExtensionByCertificate":
		return nil, new(types.InvalidLogin)
	case "Fetch", "RetrieveProperties", "RetrievePropertiesEx":
		if ctx.Session == nil && !publicTarget(method.Body) {
			return nil, &types.NotAuthenticated{
				NoPermission: types.NoPermission{Object: &method.This, PrivilegeId: "System.View"},
			}
		}
		if method.Name == "Fetch" {
			// Both: the reference for a session, the object for a call without one.
			method.This = fetcherRef
			return ctx.Map.Get(fetcherRef), nil
		}
	case "Logout":
		if ctx.Session != nil {
			a.leases.endSession(ctx.Session.Key)
		}
	case "ExportVm", "ExportSnapshot":
		method.This = exporterRef
	case "CreateSnapshot_Task", "RemoveSnapshot_Task":
		stepOff(ctx, method)
		if a.hanger.takes(ctx, method) {
			method.This = hangerRef
		}
	case "PowerOnVM_Task", "PowerOffVM_Task", "ReconfigVM_Task", "Rename_Task", "ShutdownGuest":
		if method.This.Type != "VirtualMachine" {
			break
		}
		if a.hanger.takes(ctx, method) {
			method.This = hangerRef
		} else {
			method.This = machinesRef
		}
	case "HasPrivilegeOnEntities":
		method.This = privilegesRef
	case "Destroy_Task":
		a.leases.endOf(func(l *lease) bool { return l.vm == method.This }, "destroyed")
	}
	return nil, nil
}

// publicTarget says whether a property request asks only for what a client needs before it logs in.
func publicTarget(body types.AnyType) bool {
	var specs []types.PropertyFilterSpec
	switch request := body.(type) {
	case *types.RetrieveProperties:
		specs = request.SpecSet
	case *types.RetrievePropertiesEx:
		specs = request.SpecSet
	default: // Fetch: its type is internal to govmomi
		this, ok := reflect.Indirect(reflect.ValueOf(body)).FieldByName("This").Interface().(types.ManagedObjectReference)
		return ok && isPublic(this)
	}
	for _, spec := range specs {
		for _, object := range spec.ObjectSet {
			if !isPublic(object.Obj) || len(object.SelectSet) > 0 {
				return false
			}
		}
	}
	return true
}

func isPublic(ref types.ManagedObjectReference) bool {
	return ref.Type == "ServiceInstance" || ref.Type == "SessionManager"
}

// sessions lists the sessions that are logged in.
func (a *access) sessions() []types.UserSession {
	ctx := background(a.service)
	// The view through a session is the only one with a list.
	view := ctx.Session.Get(ctx.Map.SessionManager().Self).(*simulator.SessionManager)
	return view.SessionList
}

// endSessions logs everybody out, as vCenter does with sessions that were idle too long, or an administrator. With the
// name of a VM only those that hold a lease on it.
func (a *access) endSessions(vm string) int {
	ctx := background(a.service)
	holds := map[string]bool{}
	for _, l := range a.leases.list() {
		holds[l.sessionKey] = holds[l.sessionKey] || l.vmName == vm
	}
	ended := 0
	for _, session := range a.sessions() {
		if vm != "" && !holds[session.Key] {
			continue
		}
		result := ctx.Map.SessionManager().TerminateSession(ctx, &types.TerminateSession{SessionId: []string{session.Key}})
		if result.Fault() == nil {
			a.leases.endSession(session.Key)
			ended++
		}
	}
	return ended
}

// datastore guards the simulator's file server: sessions only, and nothing is written.
func (a *access) datastore(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "the lab's datastore is read-only", http.StatusMethodNotAllowed)
		return
	}
	if !a.loggedIn(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "", http.StatusUnauthorized)
		return
	}
	a.service.ServeDatastore(w, r)
}

func (a *access) loggedIn(r *http.Request) bool {
	if user, password, ok := r.BasicAuth(); ok {
		return a.validLogin(&types.Login{UserName: user, Password: password})
	}
	cookie, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return false
	}
	ctx := background(a.service)
	answer := ctx.Map.SessionManager().SessionIsActive(ctx, &types.SessionIsActive{SessionID: cookie.Value, UserName: a.user})
	active, ok := answer.(*methods.SessionIsActiveBody)
	return ok && active.Res != nil && active.Res.Returnval
}
