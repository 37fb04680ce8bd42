package main

import (
	"encoding/json"
	"net/http"
	"sort"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// admin is the second listener: it makes faults, and tells the truth about what clients left behind.
// It has no credentials and is meant for loopback only.
type admin struct {
	access *access
	leases *leaseTable
	nfc    *nfcServer
	front  *outage
}

func (a *admin) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.state()) })
	mux.HandleFunc("GET /leases", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.leaseList()) })
	mux.HandleFunc("GET /sessions", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.sessionList()) })
	mux.HandleFunc("DELETE /sessions", func(w http.ResponseWriter, r *http.Request) {
		answer(w, map[string]int{"ended": a.access.endSessions(r.URL.Query().Get("vm"))})
	})
	mux.HandleFunc("DELETE /leases", a.endLeases)
	mux.HandleFunc("POST /tasks", a.addHang)
	mux.HandleFunc("DELETE /tasks", func(w http.ResponseWriter, _ *http.Request) {
		a.access.hanger.release()
		answer(w, []hang{})
	})
	mux.HandleFunc("POST /outage", a.setOutage)
	mux.HandleFunc("GET /snapshots", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.snapshotList()) })
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.nfc.faults.list()) })
	mux.HandleFunc("POST /faults", a.addFault)
	mux.HandleFunc("DELETE /faults", func(w http.ResponseWriter, _ *http.Request) {
		a.nfc.faults.clear()
		answer(w, []fault{})
	})
	mux.HandleFunc("POST /throttle", a.setThrottle)
	mux.HandleFunc("GET /machines", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.machineList()) })
	mux.HandleFunc("POST /machines/faults", a.addMachineFault)
	mux.HandleFunc("DELETE /machines/faults", a.clearMachineFaults)
	mux.HandleFunc("POST /privileges", a.setPrivileges)
	return mux
}

func (a *admin) addFault(w http.ResponseWriter, r *http.Request) {
	var f fault
	if !decode(w, r, &f) {
		return
	}
	if err := f.check(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.nfc.faults.add(f)
	answer(w, a.nfc.faults.list())
}

// endLeases ends a VM's leases as somebody else's abort does, or as their time limit does with reason=timed%20out.
func (a *admin) endLeases(w http.ResponseWriter, r *http.Request) {
	vm, reason := r.URL.Query().Get("vm"), orDefault(r.URL.Query().Get("reason"), "aborted")
	if err := oneOf("reason", reason, "aborted", "timed out"); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, map[string]int{"ended": a.leases.endOf(func(l *lease) bool { return l.vmName == vm }, reason)})
}

// setOutage makes the vCenter unreachable for a while: SOAP, downloads and all.
func (a *admin) setOutage(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Seconds int `json:"seconds"`
	}
	if !decode(w, r, &request) {
		return
	}
	if request.Seconds < 0 {
		http.Error(w, "seconds must not be negative", http.StatusBadRequest)
		return
	}
	answer(w, map[string]int{"cut": a.front.begin(time.Duration(request.Seconds) * time.Second)})
}

func (a *admin) setThrottle(w http.ResponseWriter, r *http.Request) {
	var request struct {
		BytesPerSecond int64 `json:"bytes_per_second"`
	}
	if !decode(w, r, &request) {
		return
	}
	if request.BytesPerSecond < 0 {
		http.Error(w, "bytes_per_second must not be negative", http.StatusBadRequest)
		return
	}
	a.nfc.throttle.set(request.BytesPerSecond)
	answer(w, request)
}

type adminState struct {
	Leases         leaseLists      `json:"leases"`
	Sessions       []sessionEntry  `json:"sessions"`
	Snapshots      []snapshotEntry `json:"snapshots"`
	Faults         []fault         `json:"faults"`
	BytesPerSecond int64           `json:"bytes_per_second"`
	Downloads      int64           `json:"downloads"`    // under way now
	BytesServed    int64           `json:"bytes_served"` // since the start
}

func (a *admin) state() adminState {
	return adminState{
		Leases: a.leaseList(), Sessions: a.sessionList(), Snapshots: a.snapshotList(), Faults: a.nfc.faults.list(),
		BytesPerSecond: a.nfc.throttle.get(), Downloads: a.nfc.active.Load(), BytesServed: a.nfc.served.Load(),
	}
}

type leaseLists struct {
	Live  []leaseEntry `json:"live"`
	Ended []leaseEntry `json:"ended"`
}

type leaseEntry struct {
	MoRef      string     `json:"moref"`
	VM         string     `json:"vm"`
	VMMoRef    string     `json:"vm_moref"`
	Snapshot   string     `json:"snapshot,omitempty"`
	Opened     time.Time  `json:"opened"`
	Renewed    time.Time  `json:"renewed"`
	Ended      *time.Time `json:"ended,omitempty"`
	Reason     string     `json:"reason,omitempty"`
	Percent    int32      `json:"percent"`
	Downloaded []string   `json:"downloaded"` // targets sent to their end
}

func (a *admin) leaseList() leaseLists {
	lists := leaseLists{Live: []leaseEntry{}, Ended: []leaseEntry{}}
	for _, l := range a.leases.list() {
		lists.Live = append(lists.Live, l.entry())
	}
	sort.Slice(lists.Live, func(i, j int) bool { return lists.Live[i].Opened.Before(lists.Live[j].Opened) })
	a.leases.mu.Lock()
	ended := append([]*lease{}, a.leases.history...)
	a.leases.mu.Unlock()
	for _, l := range ended {
		lists.Ended = append(lists.Ended, l.entry())
	}
	return lists
}

func (l *lease) entry() leaseEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	entry := leaseEntry{
		MoRef: l.Self.Value, VM: l.vmName, VMMoRef: l.vm.Value, Snapshot: l.snapshot, Opened: l.opened,
		Renewed: l.renewed, Reason: l.reason, Percent: l.percent, Downloaded: []string{},
	}
	if !l.ended.IsZero() {
		entry.Ended = &l.ended
	}
	for target := range l.complete {
		entry.Downloaded = append(entry.Downloaded, target)
	}
	sort.Strings(entry.Downloaded)
	return entry
}

type sessionEntry struct {
	User      string    `json:"user"`
	UserAgent string    `json:"user_agent"`
	LoggedIn  time.Time `json:"logged_in"`
	Active    time.Time `json:"active"`
}

// sessionList leaves the keys out: a key is a credential.
func (a *admin) sessionList() []sessionEntry {
	entries := []sessionEntry{}
	for _, s := range a.access.sessions() {
		entries = append(entries, sessionEntry{User: s.UserName, UserAgent: s.UserAgent, LoggedIn: s.LoginTime, Active: s.LastActiveTime})
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].LoggedIn.Before(entries[j].LoggedIn) })
	return entries
}

type snapshotEntry struct {
	MoRef       string    `json:"moref"`
	VM          string    `json:"vm"`
	VMMoRef     string    `json:"vm_moref"`
	Name        string    `json:"name"`
	Description string    `json:"description"`
	Created     time.Time `json:"created"`
}

func (a *admin) snapshotList() []snapshotEntry {
	entries := []snapshotEntry{}
	ctx := background(a.access.service)
	for _, entity := range ctx.Map.All("VirtualMachine") {
		vm := entity.(*simulator.VirtualMachine)
		ctx.WithLock(vm, func() {
			if vm.Snapshot != nil {
				entries = appendTree(entries, entityName(vm), vm.Snapshot.RootSnapshotList)
			}
		})
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Created.Before(entries[j].Created) })
	return entries
}

func appendTree(entries []snapshotEntry, vm string, tree []types.VirtualMachineSnapshotTree) []snapshotEntry {
	for _, node := range tree {
		entries = append(entries, snapshotEntry{
			MoRef: node.Snapshot.Value, VM: vm, VMMoRef: node.Vm.Value, Name: node.Name,
			Description: node.Description, Created: node.CreateTime,
		})
		entries = appendTree(entries, vm, node.ChildSnapshotList)
	}
	return entries
}

func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // a client that went away needs no answer
}
