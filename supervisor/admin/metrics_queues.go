package admin

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/baton-mesh/baton/supervisor"
)

// What happened to who waited at listening sockets. Of each generation, only where
// anything did: there may be thousands of listeners.
var (
	droppedDesc   = prometheus.NewDesc("baton_listener_dropped_total", "Segments that the listening sockets of all generations let fall: handshakes that found a queue full, and stray segments. Of UDP, datagrams.", []string{"listener"}, nil)
	sinkDesc      = prometheus.NewDesc("baton_sink_dropped_total", "Segments that the sockets let fall at which clients wait while nobody serves. Of UDP, every datagram that was nobody's.", []string{"listener"}, nil)
	queueDesc     = prometheus.NewDesc("baton_generation_dropped_total", "The same of each living generation.", []string{"generation", "slot", "listener"}, nil)
	movedDesc     = prometheus.NewDesc("baton_generation_moved_total", "What each living generation got from listening sockets that closed, by what it was: half_open (handshakes), to_accept (connections).", []string{"generation", "slot", "listener", "what"}, nil)
	namespaceDesc = prometheus.NewDesc("baton_namespace_tcp_total", "Counters of the network namespace, of all its sockets, by event: listen_overflows, listen_drops, half_open_overflows, half_open_cookies, migrations, migrations_that_failed.", []string{"event"}, nil)

	queueDescs = []*prometheus.Desc{droppedDesc, sinkDesc, queueDesc, movedDesc, namespaceDesc}
)

func collectQueues(st *supervisor.Status, counter emit) {
	named, sinks := map[string]bool{}, map[string]uint64{}
	for _, l := range st.Listeners {
		if !named[l.Name] { // one that moves is there twice
			named[l.Name] = true
			counter(droppedDesc, float64(l.Dropped), l.Name)
		}
		sinks[l.Name] += l.SinkDropped
	}
	for name, n := range sinks {
		counter(sinkDesc, float64(n), name)
	}
	for _, g := range st.Generations {
		id, slot := strconv.FormatUint(g.ID, 10), strconv.Itoa(g.Slot)
		for listener, q := range g.Datagrams {
			counter(queueDesc, float64(q.Dropped), id, slot, listener)
		}
		for listener, q := range g.Queues {
			counter(queueDesc, float64(q.Dropped), id, slot, listener)
			counter(movedDesc, float64(q.Moved.HalfOpen), id, slot, listener, "half_open")
			counter(movedDesc, float64(q.Moved.ToAccept), id, slot, listener, "to_accept")
		}
	}
	for event, n := range st.Namespace {
		counter(namespaceDesc, float64(n), event)
	}
}
