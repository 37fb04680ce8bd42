package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const (
	nfcPrefix = "/nfc/"
	chunkFull = 256 << 10
)

// nfcServer serves the bytes of leased devices: /nfc/<ticket>/<target>.
type nfcServer struct {
	leases   *leaseTable
	faults   faultQueue
	throttle throttle
	active   atomic.Int64 // downloads under way
	served   atomic.Int64 // bytes sent since the start
}

// ServeHTTP answers as an ESXi host does: the ticket in the path is the only credential, no Content-Length (the real
// stream is made on the fly), Range not honoured.
func (s *nfcServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "only downloads", http.StatusMethodNotAllowed)
		return
	}
	ticket, target, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, nfcPrefix), "/")
	l, device := s.leases.find(ticket, target)
	if l == nil {
		http.NotFound(w, r)
		return
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return
	}
	trouble := s.faults.take(l.vmName, target)
	if trouble != nil && trouble.Kind == "status" {
		http.Error(w, "made by the lab", trouble.Status)
		return
	}
	if trouble != nil && trouble.Kind == "redirect" {
		http.Redirect(w, r, "https://elsewhere.example"+r.URL.Path, http.StatusFound)
		return
	}
	file, err := os.Open(device.path)
	if err != nil {
		log.Printf("nfc %s of %q: %v", target, l.vmName, err)
		http.Error(w, "the disk's file cannot be read", http.StatusInternalServerError)
		return
	}
	defer file.Close()
	s.active.Add(1)
	defer s.active.Add(-1)
	s.send(w, r, l, target, file, trouble)
}

// send copies the file, or as much of it as the fault and the lease's life allow. A lease's end cuts the connection
// even when the client reads nothing: the write's deadline is set to the past.
func (s *nfcServer) send(w http.ResponseWriter, r *http.Request, l *lease, target string, file *os.File, trouble *fault) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	control := http.NewResponseController(w)
	defer context.AfterFunc(l.ctx, func() {
		cancel()
		_ = control.SetWriteDeadline(time.Now())
	})()
	w.Header().Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	w.WriteHeader(http.StatusOK)
	stream := &disturbed{file: file, fault: trouble}
	if trouble != nil {
		info, err := file.Stat()
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		stream.place = trouble.at(info.Size())
	}
	buffer := make([]byte, chunkFull)
	for {
		n, err := stream.read(buffer[:s.throttle.chunk(chunkFull)])
		s.throttle.wait(ctx, n)
		if ctx.Err() != nil {
			panic(http.ErrAbortHandler) // the client sees a broken stream, never a short one that looks whole
		}
		if _, failed := w.Write(buffer[:n]); failed != nil {
			panic(http.ErrAbortHandler)
		}
		s.served.Add(int64(n))
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			l.mu.Lock()
			l.complete[target] = true
			l.mu.Unlock()
			return
		case errors.Is(err, errTruncated):
			return
		case errors.Is(err, errStalled):
			_ = control.Flush()
			pause := time.Duration(trouble.Seconds) * time.Second
			if pause == 0 {
				pause = 24 * time.Hour
			}
			sleep(ctx, pause)
		default:
			_ = control.Flush()
			panic(http.ErrAbortHandler)
		}
	}
}

var (
	errTruncated = errors.New("truncated by a fault")
	errStalled   = errors.New("stalled by a fault")
	errCut       = errors.New("cut by a fault")
)

// disturbed reads a file with a fault at one place of it.
type disturbed struct {
	file  io.Reader
	fault *fault
	place int64
	done  int64 // bytes read
}

// read fills the buffer up to the fault's place, and says there what has to happen.
func (d *disturbed) read(buffer []byte) (int, error) {
	if d.fault == nil || d.done > d.place {
		return d.file.Read(buffer)
	}
	if left := d.place - d.done; left > 0 {
		n, err := d.file.Read(buffer[:min(int64(len(buffer)), left)])
		d.done += int64(n)
		return n, err
	}
	kind := d.fault.Kind
	d.done++ // the fault happens once
	switch kind {
	case "cut":
		return 0, errCut
	case "truncate":
		return 0, errTruncated
	case "stall":
		return 0, errStalled
	}
	n, err := d.file.Read(buffer)
	if n > 0 {
		buffer[0] ^= 0xff
	}
	return n, err
}
