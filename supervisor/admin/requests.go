package admin

import (
	"encoding/hex"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/baton-mesh/baton/proxy/ledger"
	"github.com/baton-mesh/baton/supervisor"
	"github.com/baton-mesh/baton/supervisor/account"
)

// What generations count in their ledgers. Over all generations, so that a
// counter goes on when one ends; of what is there now, by generation.
var (
	requestsDesc   = prometheus.NewDesc("baton_requests_total", "Requests and streams that have ended, by how: the first digit of the status, aborted, left, ended, failed.", []string{"listener", "route", "protocol", "class"}, nil)
	durationDesc   = prometheus.NewDesc("baton_request_duration_seconds", "From the request's head to the response's end; of upgraded connections to the response's head.", []string{"listener", "route", "protocol"}, nil)
	inFlightDesc   = prometheus.NewDesc("baton_requests_in_flight", "Requests and streams that have begun and not ended.", []string{"generation"}, nil)
	oldestDesc     = prometheus.NewDesc("baton_oldest_request_seconds", "How long the oldest request in flight has been so.", []string{"generation"}, nil)
	proxyFlowsDesc = prometheus.NewDesc("baton_proxy_flows_total", "Connections as generations count them, by what became of them (fact): accepted, closed, reset (of the closed: by theirs or ours), failed (had a request that ended badly).", []string{"listener", "fact"}, nil)
	unfinishedDesc = prometheus.NewDesc("baton_requests_unfinished_total", "Requests and streams that were in flight when their generation ended.", nil, nil)
	straysDesc     = prometheus.NewDesc("baton_quic_strays_total", "Packets of QUIC that reached another generation than their connection ID names: of one that has died, to be reset; of a living one there is none.", nil, nil)
	damagedDesc    = prometheus.NewDesc("baton_ledgers_damaged", "Ledgers, of living generations and of ended ones, that were found damaged.", nil, nil)
	lostDesc       = prometheus.NewDesc("baton_request_spans_lost_total", "Spans of requests that a generation kept and that were overwritten before they were read.", nil, nil)

	requestDescs = []*prometheus.Desc{requestsDesc, durationDesc, inFlightDesc, oldestDesc, proxyFlowsDesc, unfinishedDesc, straysDesc, damagedDesc, lostDesc}
)

// The buckets' bounds are powers of two of microseconds: 256 µs to 67 s.
const firstPower, lastPower = 8, 26

func (c collector) collectRequests(ch chan<- prometheus.Metric, st *supervisor.Status) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	all := c.supervisor.Counted()
	durations := map[account.RequestLabels]*ledger.Histogram{} // over all classes
	for labels, h := range all.Requests {
		counter(requestsDesc, h.Count, labels.Listener, labels.Route, labels.Protocol, labels.Class)
		of := labels
		of.Class = ""
		if durations[of] == nil {
			durations[of] = new(ledger.Histogram)
		}
		durations[of].Add(h)
	}
	for labels, h := range durations {
		ch <- c.histogram(labels, h)
	}
	for listener, flows := range all.Flows {
		counter(proxyFlowsDesc, flows.Accepted, listener, "accepted")
		counter(proxyFlowsDesc, flows.Closed, listener, "closed")
		counter(proxyFlowsDesc, flows.Reset, listener, "reset")
		counter(proxyFlowsDesc, flows.Failed, listener, "failed")
	}
	counter(unfinishedDesc, all.Unfinished)
	counter(straysDesc, all.Strays)
	counter(lostDesc, all.LostSpans)
	gauge(damagedDesc, float64(all.Damaged))
	for _, g := range st.Generations {
		if g.Ledger == nil || !g.Ledger.Written {
			continue
		}
		id := strconv.FormatUint(g.ID, 10)
		gauge(inFlightDesc, float64(g.Ledger.InFlight), id)
		gauge(oldestDesc, g.Ledger.OldestMS/1000, id)
	}
}

// histogram is the durations of one kind of request, with a request of each
// bucket whose trace can be looked at, where there is one.
func (c collector) histogram(labels account.RequestLabels, h *ledger.Histogram) prometheus.Metric {
	buckets := map[float64]uint64{}
	var exemplars []prometheus.Exemplar
	for power := firstPower; power <= lastPower; power++ {
		buckets[float64(uint64(1)<<power)/1e6] = h.Below(power)
		for class := range ledger.NumClasses {
			labels.Class = class.String()
			if e, ok := c.supervisor.Exemplar(labels, power); ok {
				exemplars = append(exemplars, prometheus.Exemplar{
					Value: e.Duration.Seconds(), Timestamp: e.Began,
					Labels: prometheus.Labels{"trace_id": hex.EncodeToString(e.TraceID[:])},
				})
			}
		}
	}
	m := prometheus.MustNewConstHistogram(durationDesc, h.Count, h.Sum.Seconds(), buckets, labels.Listener, labels.Route, labels.Protocol)
	if len(exemplars) == 0 {
		return m
	}
	return prometheus.MustNewMetricWithExemplars(m, exemplars...)
}
