package main

import (
	"net"
	"sync"
	"time"
)

// outage is a listener that can be out of order for a while: open connections are cut, and new ones are reset as soon
// as they are made.
type outage struct {
	net.Listener

	mu    sync.Mutex
	until time.Time
	open  map[net.Conn]bool
}

func newOutage(listener net.Listener) *outage {
	return &outage{Listener: listener, open: map[net.Conn]bool{}}
}

// Accept waits for a connection while the server is in order.
func (o *outage) Accept() (net.Conn, error) {
	for {
		connection, err := o.Listener.Accept()
		if err != nil {
			return nil, err
		}
		o.mu.Lock()
		out := time.Now().Before(o.until)
		if !out {
			o.open[connection] = true
		}
		o.mu.Unlock()
		if !out {
			return &counted{connection, o}, nil
		}
		reset(connection)
	}
}

// begin cuts every connection and resets those that come in the time given.
func (o *outage) begin(length time.Duration) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.until = time.Now().Add(length)
	count := len(o.open)
	for connection := range o.open {
		reset(connection)
	}
	o.open = map[net.Conn]bool{}
	return count
}

func reset(connection net.Conn) {
	_ = connection.(*net.TCPConn).SetLinger(0) // a reset, as of a machine that knows nothing of the connection
	_ = connection.Close()
}

// counted is a connection that its listener forgets when it is closed.
type counted struct {
	net.Conn
	listener *outage
}

// Close closes the connection.
func (c *counted) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.open, c.Conn)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
