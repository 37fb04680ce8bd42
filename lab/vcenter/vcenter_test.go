package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFolderPathsBecomeNames(t *testing.T) {
	names, err := folderNames("/DC0/vm/A%2fB/../C d")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names, "|"); got != "A/B|..|C d" {
		t.Errorf("names are %q", got)
	}
	for _, wrong := range []string{"/DC1/vm/A", "/DC0/vmA", "A", "/DC0/vm/%zz"} {
		if _, err := folderNames(wrong); err == nil {
			t.Errorf("%q was taken for a folder", wrong)
		}
	}
}

func TestInventoryMistakesAreErrors(t *testing.T) {
	for want, text := range map[string]string{
		"unknown field":         `{"vms":[{"name":"a","colour":"red"}]}`,
		"twice in folder":       `{"vms":[{"name":"a"},{"name":"a"}]}`,
		"no name":               `{"vms":[{}]}`,
		"invalid MAC":           `{"vms":[{"name":"a","nics":[{"mac":"x"}]}]}`,
		"not a multiple":        `{"vms":[{"name":"a","disks":[{"capacity_bytes":1000}]}]}`,
		"no such file":          `{"vms":[{"name":"a","disks":[{"file":"/nowhere","capacity_bytes":65536}]}]}`,
		"is not a regular file": `{"vms":[{"name":"a","disks":[{"file":"/dev/zero","capacity_bytes":65536}]}]}`,
		"firmware":              `{"vms":[{"name":"a","firmware":"coreboot"}]}`,
	} {
		path := filepath.Join(t.TempDir(), "inventory.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadInventory(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", text, err, want)
		}
	}
}

func TestNamesCannotLeaveTheDatastore(t *testing.T) {
	b := &builder{root: t.TempDir(), taken: map[string]bool{}}
	for name, want := range map[string]string{
		"../../etc": "_._.._etc", "a/b": "a_b", "..": "_.", ".": "_", `x\y[1]`: "x_y_1_",
	} {
		got, err := b.directory(name)
		if err != nil || got != want {
			t.Errorf("%q became %q (%v), want %q", name, got, err, want)
		}
	}
	if second, _ := b.directory("a/b"); second != "a_b_1" {
		t.Errorf("the second a/b is %q", second)
	}
}

func TestAFaultMeetsTheDownloadItIsMeantFor(t *testing.T) {
	var q faultQueue
	q.add(fault{Kind: "cut", VM: "other", Count: 1})
	q.add(fault{Kind: "flip", Target: "disk-1.vmdk", Count: 2})
	if got := q.take("web01", "disk-0.vmdk"); got != nil {
		t.Errorf("disk 0 met %v", got)
	}
	for range 2 {
		if got := q.take("web01", "disk-1.vmdk"); got == nil || got.Kind != "flip" {
			t.Errorf("disk 1 met %v", got)
		}
	}
	if got := q.take("web01", "disk-1.vmdk"); got != nil || len(q.list()) != 1 {
		t.Errorf("a third download met %v", got)
	}
}

func TestADisturbedStreamDiffersOnlyAtItsPlace(t *testing.T) {
	whole := bytes.Repeat([]byte("0123456789"), 100)
	for _, place := range []int64{0, 1, 511, 999} {
		stream := &disturbed{file: bytes.NewReader(whole), fault: &fault{Kind: "flip"}, place: place}
		var got []byte
		buffer := make([]byte, 64)
		for {
			n, err := stream.read(buffer)
			got = append(got, buffer[:n]...)
			if err == io.EOF {
				break
			}
		}
		want := bytes.Clone(whole)
		want[place] ^= 0xff
		if !bytes.Equal(got, want) {
			t.Errorf("place %d: the stream is not the one with that byte flipped", place)
		}
	}
}

func TestAThrottleLetsGoWhenItsDownloadEnds(t *testing.T) {
	var slow throttle
	slow.set(1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	finished := make(chan struct{})
	go func() { slow.wait(ctx, 1<<20); close(finished) }()
	select {
	case <-finished:
	case <-time.After(10 * time.Second):
		t.Error("it waited on after the download had ended")
	}
}

func TestAnOutageCutsWhatIsOpenAndResetsWhatComes(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newOutage(listener)
	defer server.Close()
	go func() {
		for {
			connection, err := server.Accept()
			if err != nil {
				return
			}
			_, _ = connection.Write([]byte("x"))
		}
	}()
	greeted := func() bool {
		connection, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			return false
		}
		defer connection.Close()
		_, err = connection.Read(make([]byte, 1))
		return err == nil
	}
	if !greeted() {
		t.Error("no greeting before the outage")
	}
	if cut := server.begin(time.Hour); cut != 1 {
		t.Errorf("%d connections were cut, want 1", cut)
	}
	if greeted() {
		t.Error("greeted during the outage")
	}
	if server.begin(0); !greeted() {
		t.Error("no greeting after the outage")
	}
}
