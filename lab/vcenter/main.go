// Command vcenter serves a simulated vCenter for Hyperflow's lab: govmomi's simulator with a real certificate, real
// credentials, an inventory read from a file, export leases that time out and whose URLs are tickets, ExportVm, and a
// second listener that makes faults and shows what clients left behind.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
)

type settings struct {
	listen       string
	admin        string
	user         string
	passwordFile string
	state        string
	inventory    string
	leaseTimeout time.Duration
}

// ready is what vcenter.json says: everything a client needs but the password.
type ready struct {
	URL          string `json:"url"`
	Host         string `json:"host"`
	Port         int    `json:"port"`
	SHA256       string `json:"thumbprint_sha256"`
	SHA1         string `json:"thumbprint_sha1"`
	AdminURL     string `json:"admin_url"`
	User         string `json:"user"`
	PID          int    `json:"pid"`
	CertFile     string `json:"certificate"`
	LeaseSeconds int    `json:"lease_timeout_seconds"`
}

func main() {
	var s settings
	flag.StringVar(&s.listen, "listen", "127.0.0.1:0", "address of the vCenter; port 0 takes a free one")
	flag.StringVar(&s.admin, "admin", "127.0.0.1:0", "address of the fault and truth listener")
	flag.StringVar(&s.user, "user", "", "the only user")
	flag.StringVar(&s.passwordFile, "password-file", "", "file with the user's password")
	flag.StringVar(&s.state, "state", "", "directory for the certificate, the datastore and vcenter.json")
	flag.StringVar(&s.inventory, "inventory", "", "JSON file with the VMs")
	flag.DurationVar(&s.leaseTimeout, "lease-timeout", 300*time.Second, "a lease that nobody renews ends after this")
	flag.Parse()
	log.SetFlags(log.LstdFlags | log.LUTC)
	if s.user == "" || s.passwordFile == "" || s.state == "" || s.inventory == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "vcenter: -user, -password-file, -state and -inventory are needed")
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, s); err != nil {
		log.Printf("vcenter: %v", err)
		stop()
		os.Exit(1)
	}
}

// serve runs until ctx ends, and leaves nothing in the state directory but the certificate.
func serve(ctx context.Context, s settings) error {
	password, err := readPassword(s.passwordFile)
	if err != nil {
		return err
	}
	inv, err := loadInventory(s.inventory)
	if err != nil {
		return err
	}
	if s.state, err = filepath.Abs(s.state); err != nil {
		return err
	}
	unlock, err := claim(s.state)
	if err != nil {
		return err
	}
	defer unlock()
	pair, err := loadCertificate(s.state)
	if err != nil {
		return err
	}
	model, err := newModel()
	if err != nil {
		return err
	}
	defer model.Remove()
	told, err := populate(model, inv)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.listen)
	if err != nil {
		return err
	}
	front := newOutage(listener)
	defer front.Close()
	side, err := net.Listen("tcp", s.admin)
	if err != nil {
		return err
	}
	defer side.Close()
	address := &url.URL{Scheme: "https", Host: front.Addr().String()}
	gate, nfc := wire(model.Service, s, password, address, pair, told)
	file, err := announce(s, front.Addr().(*net.TCPAddr), side.Addr(), pair)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	log.Printf("vCenter with %d VMs at %s, admin at http://%s", len(inv.VMs), address, side.Addr())
	defer nfc.leases.endAll()
	return answerCalls(ctx, map[net.Listener]*http.Server{
		front: {Handler: routes(model.Service, gate, nfc), TLSConfig: tlsConfig(pair), TLSNextProto: noHTTP2},
		side:  {Handler: (&admin{access: gate, leases: nfc.leases, nfc: nfc, front: front}).mux()},
	})
}

func readPassword(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	password := strings.TrimRight(string(data), "\r\n")
	if password == "" {
		return "", fmt.Errorf("%s holds no password", path)
	}
	return password, nil
}

// announce writes vcenter.json. The sockets listen already: a client that is early waits in their queue.
func announce(s settings, front *net.TCPAddr, side net.Addr, pair *certificate) (string, error) {
	data, err := json.MarshalIndent(ready{
		URL: "https://" + front.String() + vim25.Path, Host: front.IP.String(), Port: front.Port,
		SHA256: pair.sha256, SHA1: pair.sha1, AdminURL: "http://" + side.String(), User: s.user,
		PID: os.Getpid(), CertFile: filepath.Join(s.state, "cert.pem"), LeaseSeconds: int(s.leaseTimeout / time.Second),
	}, "", "  ")
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.state, "vcenter.json")
	return path, writeAtomically(path, append(data, '\n'), 0o644)
}

// answerCalls serves until ctx ends or a listener fails. Connections are cut then: a client of a lab that goes down
// has nothing to wait for.
func answerCalls(ctx context.Context, servers map[net.Listener]*http.Server) error {
	failed := make(chan error, len(servers))
	for listener, server := range servers {
		go func() {
			if server.TLSConfig != nil {
				failed <- server.ServeTLS(listener, "", "")
			} else {
				failed <- server.Serve(listener)
			}
		}()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, server := range servers {
		_ = server.Close()
	}
	return err
}

// claim makes the state directory this process's own, and clears what a killed one left in it.
func claim(state string) (func(), error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(state, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("%s belongs to a vCenter that runs: %w", state, err)
	}
	datastores := filepath.Join(state, "datastores")
	for _, stale := range []string{datastores, filepath.Join(state, "vcenter.json")} {
		if err := os.RemoveAll(stale); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(datastores, 0o700); err != nil {
		return nil, err
	}
	// The simulator makes its datastores in the temporary directory: this keeps them where we find them again.
	if err := os.Setenv("TMPDIR", datastores); err != nil {
		return nil, err
	}
	return func() {
		_ = os.RemoveAll(datastores)
		_ = lock.Close()
	}, nil
}

// wire puts our objects and rules into the simulator.
func wire(service *simulator.Service, s settings, password string, address *url.URL, pair *certificate, notes *notes) (*access, *nfcServer) {
	leases := newLeaseTable(service, s.leaseTimeout)
	gate := &access{
		service: service, leases: leases, hanger: newHanger(), machines: newMachines(notes.deaf),
		privileges: &privileges{Self: privilegesRef}, user: s.user, password: password,
	}
	gate.hanger.machines = gate.machines
	registry := service.Context.Map
	registry.Put(&exporter{Self: exporterRef, table: leases, url: address, thumbprint: pair.sha1, hideSizes: notes.hideSizes})
	registry.Put(&fetcher{Self: fetcherRef})
	registry.Put(gate.hanger)
	registry.Put(gate.privileges)
	registry.Put(gate.machines)
	registry.AddHandler(gate.machines)
	registry.Handler = gate.handle
	sessions := registry.SessionManager()
	sessions.ServiceHostName = address.Host
	sessions.TLS = func() *tls.Config { return tlsConfig(pair) }
	sessions.ValidLogin = gate.validLogin
	// With the simulator's default user here, any password would do.
	service.Listen = &url.URL{Scheme: address.Scheme, Host: address.Host, Path: vim25.Path, User: url.User(s.user)}
	return gate, &nfcServer{leases: leases}
}

// routes are those of simulator.Service.NewServer, with guards, and without what a migration has no use for.
func routes(service *simulator.Service, gate *access, nfc *nfcServer) http.Handler {
	service.RegisterSDK(service.Context.Map, vim25.Path+"/vimService")
	mux := service.ServeMux
	mux.HandleFunc(vim25.Path+"/vimServiceVersions.xml", service.ServiceVersions)
	mux.HandleFunc("/folder/", gate.datastore)
	mux.Handle(nfcPrefix, nfc)
	return mux
}

// noHTTP2 keeps clients on HTTP/1.1, which is what an ESXi host's NFC service speaks.
var noHTTP2 = map[string]func(*http.Server, *tls.Conn, http.Handler){}

func tlsConfig(pair *certificate) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{pair.Certificate},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"},
	}
}
