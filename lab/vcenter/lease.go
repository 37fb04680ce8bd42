package main

import (
	"context"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // the manifest's default checksum in vSphere
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	keptHistory  = 500
	becomesReady = 50 * time.Millisecond // a real lease is never ready at once: clients must wait
)

// leaseDevice is one thing that a lease offers for download.
type leaseDevice struct {
	url      types.HttpNfcLeaseDeviceUrl
	path     string // local file
	capacity int64
}

// lease is our HttpNfcLease. The simulator's own has no timeout, gives away the session's key in its URL, and cannot
// tell two disks with files of one name apart. The embedded managed object must be the first field: the property
// collector looks for it there.
type lease struct {
	mo.HttpNfcLease
	table      *leaseTable
	ctx        context.Context // ends with the lease, and with it every download
	cancel     context.CancelFunc
	home       *simulator.Registry // the session's objects
	sessionKey string
	ticket     string
	vm         types.ManagedObjectReference
	vmName     string
	snapshot   string // moref, or nothing for ExportVm
	devices    []leaseDevice
	timer      *time.Timer

	mu        sync.Mutex // guards what follows
	opened    time.Time
	renewed   time.Time
	ended     time.Time
	reason    string // completed, aborted, timed out, session ended, destroyed
	percent   int32
	complete  map[string]bool // targets downloaded to their end
	checksums map[string]string
}

// leaseTable holds the leases that live, by ticket, and how the last ones ended.
type leaseTable struct {
	service *simulator.Service
	timeout time.Duration

	mu      sync.Mutex
	live    map[string]*lease
	history []*lease
}

func newLeaseTable(service *simulator.Service, timeout time.Duration) *leaseTable {
	return &leaseTable{service: service, timeout: timeout, live: map[string]*lease{}}
}

// open makes a lease of the calling session and returns its reference. It becomes ready a little later.
func (t *leaseTable) open(ctx *simulator.Context, l *lease) types.ManagedObjectReference {
	l.table, l.home, l.sessionKey = t, ctx.Session.Registry, ctx.Session.Key
	l.complete, l.checksums = map[string]bool{}, map[string]string{}
	l.opened = time.Now()
	l.renewed = l.opened
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.Self = types.ManagedObjectReference{Type: "HttpNfcLease", Value: "session[" + randomHex() + "]" + randomHex()}
	l.State = types.HttpNfcLeaseStateInitializing
	l.Mode = string(types.HttpNfcLeaseModePushOrGet)
	l.Capabilities = types.HttpNfcLeaseCapabilities{CorsSupported: true}
	ctx.Session.Put(l)

	t.mu.Lock()
	t.live[l.ticket] = l
	l.timer = time.AfterFunc(t.timeout, func() { t.end(l, "timed out") }) // before anybody can find and end it
	t.mu.Unlock()
	time.AfterFunc(becomesReady, l.ready)
	return l.Self
}

func (l *lease) ready() {
	ctx := background(l.table.service)
	info := &types.HttpNfcLeaseInfo{Lease: l.Self, Entity: l.vm, LeaseTimeout: int32(l.table.timeout / time.Second)}
	for _, device := range l.devices {
		info.DeviceUrl = append(info.DeviceUrl, device.url)
		info.TotalDiskCapacityInKB += device.capacity / 1024
	}
	ctx.WithLock(l, func() {
		if l.State == types.HttpNfcLeaseStateInitializing && l.ctx.Err() == nil {
			ctx.Update(l, []types.PropertyChange{
				{Name: "initializeProgress", Val: int32(100)},
				{Name: "info", Val: info},
				{Name: "state", Val: types.HttpNfcLeaseStateReady},
			})
		}
	})
}

// end stops the lease's downloads and URLs. It says false when the lease had ended before.
func (t *leaseTable) end(l *lease, reason string) bool {
	t.mu.Lock()
	_, lives := t.live[l.ticket]
	if lives {
		l.mu.Lock()
		l.ended, l.reason = time.Now(), reason // before it is in the history: who finds it there is told why it ended
		l.mu.Unlock()
		delete(t.live, l.ticket)
		t.history = append(t.history, l)
		if len(t.history) > keptHistory {
			t.history = t.history[1:]
		}
	}
	t.mu.Unlock()
	if !lives {
		return false
	}
	l.timer.Stop()
	ctx := background(t.service)
	if reason == "timed out" {
		// The object stays until its session ends, so that a client can read why.
		fault := &types.LocalizedMethodFault{Fault: new(types.Timedout), LocalizedMessage: "The lease has timed out."}
		ctx.WithLock(l, func() {
			ctx.Update(l, []types.PropertyChange{{Name: "error", Val: fault}, {Name: "state", Val: types.HttpNfcLeaseStateError}})
		})
	} else {
		l.home.Remove(ctx, l.Self)
	}
	l.cancel() // last: a client whose download is cut finds the lease's end when it asks why
	return true
}

// endOf ends the leases that are meant, and says how many.
func (t *leaseTable) endOf(meant func(*lease) bool, reason string) int {
	count := 0
	for _, l := range t.list() {
		if meant(l) && t.end(l, reason) {
			count++
		}
	}
	return count
}

// endSession ends the leases of a session, as vCenter does at logout.
func (t *leaseTable) endSession(key string) {
	t.endOf(func(l *lease) bool { return l.sessionKey == key }, "session ended")
}

// endAll ends every lease, for the program's own end.
func (t *leaseTable) endAll() {
	t.endOf(func(*lease) bool { return true }, "session ended")
}

func (t *leaseTable) list() []*lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*lease, 0, len(t.live))
	for _, l := range t.live {
		all = append(all, l)
	}
	return all
}

// find is what makes the URL's path a ticket: who does not know it finds nothing.
func (t *leaseTable) find(ticket, target string) (*lease, *leaseDevice) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.live[ticket]
	if l == nil {
		return nil, nil
	}
	for i := range l.devices {
		if l.devices[i].url.TargetId == target {
			return l, &l.devices[i]
		}
	}
	return nil, nil
}

// HttpNfcLeaseProgress keeps the lease alive: nothing else does, a download in progress neither.
func (l *lease) HttpNfcLeaseProgress(ctx *simulator.Context, req *types.HttpNfcLeaseProgress) soap.HasFault {
	body := new(methods.HttpNfcLeaseProgressBody)
	if !l.timer.Stop() || l.ctx.Err() != nil {
		body.Fault_ = simulator.Fault("The lease has timed out.", new(types.Timedout))
		return body
	}
	l.timer.Reset(l.table.timeout)
	l.mu.Lock()
	l.renewed, l.percent = time.Now(), req.Percent
	l.mu.Unlock()
	ctx.Update(l, []types.PropertyChange{{Name: "transferProgress", Val: req.Percent}})
	body.Res = new(types.HttpNfcLeaseProgressResponse)
	return body
}

// HttpNfcLeaseComplete ends the lease; its object is gone afterwards.
func (l *lease) HttpNfcLeaseComplete(_ *simulator.Context, _ *types.HttpNfcLeaseComplete) soap.HasFault {
	body := new(methods.HttpNfcLeaseCompleteBody)
	if !l.table.end(l, "completed") {
		body.Fault_ = simulator.Fault("The lease has timed out.", new(types.Timedout))
		return body
	}
	body.Res = new(types.HttpNfcLeaseCompleteResponse)
	return body
}

// HttpNfcLeaseAbort ends the lease after a failure of the client.
func (l *lease) HttpNfcLeaseAbort(_ *simulator.Context, _ *types.HttpNfcLeaseAbort) soap.HasFault {
	body := new(methods.HttpNfcLeaseAbortBody)
	if !l.table.end(l, "aborted") {
		body.Fault_ = simulator.Fault("The lease has timed out.", new(types.Timedout))
		return body
	}
	body.Res = new(types.HttpNfcLeaseAbortResponse)
	return body
}

// HttpNfcLeaseSetManifestChecksumType chooses the algorithm of each device's checksum (vSphere 6.7 and later).
func (l *lease) HttpNfcLeaseSetManifestChecksumType(_ *simulator.Context, req *types.HttpNfcLeaseSetManifestChecksumType) soap.HasFault {
	body := new(methods.HttpNfcLeaseSetManifestChecksumTypeBody)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, pair := range req.DeviceUrlsToChecksumTypes {
		if pair.Value != "sha1" && pair.Value != "sha256" {
			body.Fault_ = simulator.Fault("", &types.InvalidArgument{InvalidProperty: "deviceUrlsToChecksumTypes"})
			return body
		}
		l.checksums[pair.Key] = pair.Value
	}
	body.Res = new(types.HttpNfcLeaseSetManifestChecksumTypeResponse)
	return body
}

// HttpNfcLeaseGetManifest lists the devices that were downloaded to their end, with the checksum of the bytes that the
// server holds: when a fault corrupted the stream, the two differ.
func (l *lease) HttpNfcLeaseGetManifest(_ *simulator.Context, _ *types.HttpNfcLeaseGetManifest) soap.HasFault {
	body := new(methods.HttpNfcLeaseGetManifestBody)
	response := new(types.HttpNfcLeaseGetManifestResponse)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, device := range l.devices {
		if !l.complete[device.url.TargetId] {
			continue
		}
		kind := orDefault(l.checksums[device.url.Key], "sha1")
		sum, size, err := hashFile(device.path, kind)
		if err != nil {
			body.Fault_ = simulator.Fault(err.Error(), &types.FileFault{File: device.url.TargetId})
			return body
		}
		entry := types.HttpNfcLeaseManifestEntry{
			Key: device.url.Key, Checksum: sum, ChecksumType: kind, Size: size,
			Disk: *device.url.Disk, Capacity: device.capacity,
		}
		if kind == "sha1" {
			entry.Sha1 = sum
		}
		response.Returnval = append(response.Returnval, entry)
	}
	body.Res = response
	return body
}

func hashFile(path, kind string) (string, int64, error) {
	var sum hash.Hash = sha1.New()
	if kind == "sha256" {
		sum = sha256.New()
	}
	file, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer file.Close()
	size, err := io.Copy(sum, file)
	return hex.EncodeToString(sum.Sum(nil)), size, err
}

// randomHex is 128 unguessable bits.
func randomHex() string {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails since Go 1.24
	return hex.EncodeToString(raw)
}
