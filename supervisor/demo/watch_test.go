package demo

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"sync/atomic"
	"testing"
	"time"
)

// fakeNode answers /v1/status with one status after another, and then the last.
func fakeNode(t *testing.T, statuses ...string) (n *Node, atEnd func() bool) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i := int(asked.Add(1)) - 1
		io.WriteString(w, statuses[min(i, len(statuses)-1)])
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	n = &Node{socket: socket, api: newAPI(socket)}
	t.Cleanup(n.api.CloseIdleConnections)
	return n, func() bool { return int(asked.Load()) > len(statuses) }
}

func TestWatcherSeesEachShiftOnce(t *testing.T) {
	node, atEnd := fakeNode(t,
		`{"state":"serving","current":1,"generations":[{"id":1,"pid":11,"state":"serving"}]}`,
		`{"current":1,"generations":[{"id":1,"pid":11},{"id":2,"pid":12,"state":"ready"}],"release":{"stage":"shift","generation":2,"weight":0.01}}`,
		`{"current":1,"generations":[{"id":1,"pid":11},{"id":2,"pid":12,"state":"ready"}],"release":{"stage":"verify","generation":2,"weight":1}}`,
		`{"current":2,"generations":[{"id":1,"pid":11,"state":"draining"},{"id":2,"pid":12}]}`,
		`{"current":2,"generations":[{"id":2,"pid":12},{"id":3,"pid":13}],"release":{"stage":"verify","generation":3,"weight":1}}`,
		`{"current":2,"generations":[{"id":2,"pid":12}]}`, // rolled back
		`{"current":2,"generations":[{"id":2,"pid":12},{"id":4,"pid":14}],"release":{"stage":"verify","generation":4,"weight":1},"drained":{"ended":1,"cut":2}}`,
	)
	w := &Watcher{Node: node}
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	go func() {
		for !atEnd() {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	w.Run(ctx)

	var got [][2]int
	last := began
	for _, s := range w.Shifts() {
		got = append(got, [2]int{s.Generation, s.PID})
		if s.From.Before(last) || !s.To.After(s.From) {
			t.Errorf("generation %d: window %v to %v", s.Generation, s.From, s.To)
		}
		last = s.From
	}
	if want := [][2]int{{2, 12}, {3, 13}, {4, 14}}; !reflect.DeepEqual(got, want) {
		t.Errorf("shifts to generations and processes %v, want %v", got, want)
	}
	if w.Cut() != 2 {
		t.Errorf("%d cut, want 2", w.Cut())
	}
	if w.Latest().Current != 2 {
		t.Errorf("current %d", w.Latest().Current)
	}
}

// The names are what the commands print; another program reads them too.
func TestResultDecodes(t *testing.T) {
	const printed = `{"id":7,"outcome":"rolled_back","exit_code":3,"generation":4,"previous":3,"reason":"it died",
		"stages":[{"name":"validate","ms":12.3,"error":""}],"queued_at_shift":{"half_open":1,"to_accept":2}}`
	var r Result
	if err := json.Unmarshal([]byte(printed), &r); err != nil {
		t.Fatal(err)
	}
	want := Result{ID: 7, Outcome: "rolled_back", ExitCode: 3, Generation: 4, Previous: 3, Reason: "it died",
		Stages: []Stage{{Name: "validate", MS: 12.3}}}
	want.QueuedAtShift.HalfOpen, want.QueuedAtShift.ToAccept = 1, 2
	if !reflect.DeepEqual(r, want) {
		t.Errorf("%+v", r)
	}
}

func TestServingIsWhoeverGetsAllNewFlows(t *testing.T) {
	for text, want := range map[string]int{
		`{"current":1}`: 1,
		`{"current":1,"release":{"stage":"start","generation":2}}`:               1,
		`{"current":1,"release":{"stage":"verify","generation":2,"weight":0.5}}`: 0,
		`{"current":1,"release":{"stage":"verify","generation":2,"weight":1}}`:   2,
	} {
		var s Status
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		if got := s.serving(); got != want {
			t.Errorf("%s: %d serves, want %d", text, got, want)
		}
	}
}
