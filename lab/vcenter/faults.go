package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// fault is one disturbance of one download. JSON form of POST /faults.
type fault struct {
	Kind    string `json:"kind"`              // flip, cut, truncate, stall, status, redirect
	VM      string `json:"vm,omitempty"`      // only this VM's downloads (unescaped name)
	Target  string `json:"target,omitempty"`  // only this targetId (disk-0.vmdk)
	Offset  int64  `json:"offset,omitempty"`  // byte of the stream where it happens; below zero: from the end
	Seconds int    `json:"seconds,omitempty"` // stall: how long; 0: until the lease ends
	Status  int    `json:"status,omitempty"`  // status: the HTTP status
	Count   int    `json:"count,omitempty"`   // how many downloads it meets (default 1)
}

func (f *fault) check() error {
	if f.Count == 0 {
		f.Count = 1
	}
	if f.Count < 0 || f.Seconds < 0 {
		return fmt.Errorf("count and seconds must not be negative")
	}
	if f.Kind == "status" && (f.Status < 400 || f.Status > 599) {
		return fmt.Errorf("status %d is not an HTTP error status", f.Status)
	}
	return oneOf("kind", f.Kind, "flip", "cut", "truncate", "stall", "status", "redirect")
}

// at is the fault's place in a stream of size bytes.
func (f *fault) at(size int64) int64 {
	place := f.Offset
	if place < 0 {
		place += size
	}
	return min(max(place, 0), size)
}

// faultQueue holds the faults to come; each download takes the first that fits it.
type faultQueue struct {
	mu     sync.Mutex
	queued []fault
}

func (q *faultQueue) add(f fault) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queued = append(q.queued, f)
}

func (q *faultQueue) clear() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.queued = nil
}

func (q *faultQueue) list() []fault {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]fault{}, q.queued...)
}

func (q *faultQueue) take(vm, target string) *fault {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.queued {
		f := &q.queued[i]
		if (f.VM != "" && f.VM != vm) || (f.Target != "" && f.Target != target) {
			continue
		}
		taken := *f
		if f.Count--; f.Count == 0 {
			q.queued = append(q.queued[:i], q.queued[i+1:]...)
		}
		return &taken
	}
	return nil
}

// throttle bounds the bytes per second of all downloads together, as an ESXi host's NFC service does.
type throttle struct {
	mu   sync.Mutex
	rate int64 // bytes per second; 0: no bound
	free time.Time
}

func (t *throttle) set(rate int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rate, t.free = rate, time.Time{}
}

func (t *throttle) get() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rate
}

// chunk is how much to send at once: a tenth of a second's worth when throttled, so that a rate is a rate.
func (t *throttle) chunk(full int) int {
	rate := t.get()
	if rate == 0 {
		return full
	}
	return int(min(max(rate/10, 512), int64(full)))
}

// wait returns when n more bytes may go, or when ctx ends.
func (t *throttle) wait(ctx context.Context, n int) {
	t.mu.Lock()
	now := time.Now()
	if t.rate == 0 {
		t.mu.Unlock()
		return
	}
	if t.free.Before(now) {
		t.free = now
	}
	t.free = t.free.Add(time.Duration(n) * time.Second / time.Duration(t.rate))
	pause := t.free.Sub(now)
	t.mu.Unlock()
	sleep(ctx, pause)
}

func sleep(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
