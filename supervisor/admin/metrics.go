package admin

import (
	"maps"
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/baton-mesh/baton/proxy/config"
	"github.com/baton-mesh/baton/supervisor"
)

// collector reads the supervisor when it is scraped; nothing is counted twice.
type collector struct{ supervisor *supervisor.Supervisor }

var (
	readyDesc       = prometheus.NewDesc("baton_ready", "Whether a generation serves and the node takes new flows (1) or not (0).", nil, nil)
	currentDesc     = prometheus.NewDesc("baton_current_generation", "Number of the generation that new flows go to.", nil, nil)
	generationsDesc = prometheus.NewDesc("baton_generations", "Living generations by state.", []string{"state"}, nil)
	releasesDesc    = prometheus.NewDesc("baton_releases_total", "Releases that have ended, by outcome.", []string{"outcome"}, nil)
	stageDesc       = prometheus.NewDesc("baton_last_release_stage_seconds", "How long each stage of the last release took.", []string{"stage"}, nil)
	endedDesc       = prometheus.NewDesc("baton_generations_ended_total", "Generations that have ended.", nil, nil)
	crashesDesc     = prometheus.NewDesc("baton_generation_crashes_total", "Generations that served and ended by themselves, or gave up their listening sockets.", nil, nil)
	problemDesc     = prometheus.NewDesc("baton_problem", "Whether something lasts that somebody has to see to (1) or not (0), by what it is with; baton status says it in words.", []string{"what"}, nil)
	cutDesc         = prometheus.NewDesc("baton_drain_cut_flows_total", "Flows that a drain's deadline cut in the middle of something.", nil, nil)
	idleClosedDesc  = prometheus.NewDesc("baton_drain_idle_closed_total", "Idle keep-alive connections closed at a drain's deadline.", nil, nil)
	halfOpenDesc    = prometheus.NewDesc("baton_drain_half_open_left_total", "Handshakes unfinished when a drain stopped waiting for them; they go over by kernel migration.", nil, nil)
	refusedDesc     = prometheus.NewDesc("baton_guard_refused_total", "Socket options that would have changed a listener's steering, tried by the generation in the slot and refused.", []string{"slot", "option"}, nil)
	idConfigDesc    = prometheus.NewDesc("baton_connection_id_config", "Config that connection IDs of QUIC are written under; 0: readable.", nil, nil)
	idKeysDesc      = prometheus.NewDesc("baton_connection_id_keys", "Keys that connection IDs of QUIC are read by, by state: in_file, retiring (taken out, and kept for living generations).", []string{"state"}, nil)
	idRefusedDesc   = prometheus.NewDesc("baton_connection_id_file_refused", "Whether the file of keys of connection IDs is gone or has a mistake (1), so that what was in force stays, or not (0).", nil, nil)
	optionDesc      = prometheus.NewDesc("baton_tcp_option_total", "What became of the TCP option with a node's number, by event: answered, answer_full (SYN-ACKs of the listeners), learned, untold (connections to upstreams), echoed, echo_full (their headers).", []string{"event"}, nil)
	undeclaredDesc  = prometheus.NewDesc("baton_exit_undeclared_flows_total", "Flows that were open when a generation's process ended and that it had not reported.", nil, nil)
	openFlowsDesc   = prometheus.NewDesc("baton_open_flows", "TCP connections established and not over, of each living generation.", []string{"generation"}, nil)
	flowsDesc       = prometheus.NewDesc("baton_flows_total", "TCP connections by what became of them (fact), as the kernel saw it, by listener.", []string{"listener", "fact"}, nil)
	generationDesc  = prometheus.NewDesc("baton_generation_flows_total", "TCP connections by what became of them (fact), as the kernel saw it, of each living generation.", []string{"generation", "fact"}, nil)
	exportDesc      = prometheus.NewDesc("baton_spans_exported_total", "Spans on their way to the collector, by result: exported, failed (the collector did not take them), dropped (the queue was full).", []string{"result"}, nil)
	storeDesc       = prometheus.NewDesc("baton_spans_stored_total", "Spans and releases on their way to the store, by result: kept, failed (the disk did not take them), dropped (the queue was full).", []string{"result"}, nil)
	intakeDesc      = prometheus.NewDesc("baton_spans_received_total", "Spans that generations have sent, by result: kept, sampled_out, invalid.", []string{"result"}, nil)
	refusalsDesc    = prometheus.NewDesc("baton_span_exports_refused_total", "Exports of generations that were too large, too many at once or not OTLP.", nil, nil)
	runsDesc        = prometheus.NewDesc("baton_steering_runs_total", "How often the steering program chose, by listener and reason. A flow can take more than one run.", []string{"listener", "reason"}, nil)
	slotRunsDesc    = prometheus.NewDesc("baton_steering_slot_runs_total", "How often the steering program chose, over all listeners, by slot (none: no slot) and reason.", []string{"slot", "reason"}, nil)
)

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range append(queueDescs, requestDescs...) {
		ch <- d
	}
	for _, d := range []*prometheus.Desc{readyDesc, currentDesc, generationsDesc, releasesDesc, stageDesc, endedDesc, crashesDesc, problemDesc, cutDesc, idleClosedDesc, halfOpenDesc, refusedDesc, idConfigDesc, idKeysDesc, idRefusedDesc, optionDesc, exportDesc, storeDesc, intakeDesc, refusalsDesc, undeclaredDesc, openFlowsDesc, flowsDesc, generationDesc, runsDesc, slotRunsDesc} {
		ch <- d
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	st := c.supervisor.Status()
	gauge(readyDesc, oneIf(c.supervisor.Ready()))
	gauge(currentDesc, float64(st.Current))
	for _, what := range supervisor.ProblemKinds {
		gauge(problemDesc, oneIf(slices.ContainsFunc(st.Problems, func(p supervisor.Problem) bool { return p.What == what })), string(what))
	}
	collectReleases(&st, c.supervisor.Outcomes(), gauge, counter)
	c.collectRequests(ch, &st)
	collectFlows(&st, gauge, counter)
	collectQueues(&st, counter)
	collectRuns(&st, counter)
	collectIDs(&st, gauge)
	collectSpans(&st, counter)
	for _, refused := range st.Guard.Refused {
		for option, n := range refused.Options {
			counter(refusedDesc, float64(n), strconv.Itoa(refused.Slot), option)
		}
	}
	for event, n := range st.TCPOption {
		counter(optionDesc, float64(n), event)
	}
}

// emit hands one value on.
type emit func(d *prometheus.Desc, v float64, labels ...string)

func oneIf(so bool) float64 {
	if so {
		return 1
	}
	return 0
}

// collectReleases is what became of releases, and of generations.
func collectReleases(st *supervisor.Status, outcomes map[supervisor.Outcome]uint64, gauge, counter emit) {
	for _, outcome := range supervisor.AllOutcomes {
		counter(releasesDesc, float64(outcomes[outcome]), string(outcome)) // from 0 on: a counter that begins at 1 has not grown, to Prometheus
	}
	if st.Last != nil {
		for _, stage := range st.Last.Stages {
			gauge(stageDesc, stage.Milliseconds/1000, stage.Name)
		}
	}
	byState := map[supervisor.State]int{supervisor.Starting: 0, supervisor.Ready: 0, supervisor.Serving: 0, supervisor.Draining: 0}
	for _, g := range st.Generations {
		byState[g.State]++
	}
	for state, n := range byState {
		gauge(generationsDesc, float64(n), string(state))
	}
	counter(endedDesc, float64(st.Drained.Ended))
	counter(crashesDesc, float64(st.Drained.Crashed))
	counter(cutDesc, float64(st.Drained.Cut))
	counter(idleClosedDesc, float64(st.Drained.IdleClosed))
	counter(halfOpenDesc, float64(st.Drained.HalfOpenLeft))
	counter(undeclaredDesc, float64(st.Drained.Undeclared))
}

// collectFlows is the kernel's account.
func collectFlows(st *supervisor.Status, gauge, counter emit) {
	for _, g := range st.Generations {
		if g.Flows == nil {
			continue
		}
		id := strconv.FormatUint(g.ID, 10)
		gauge(openFlowsDesc, float64(g.OpenFlows), id)
		for fact, n := range g.Flows {
			counter(generationDesc, float64(n), id, fact)
		}
	}
	named := map[string]bool{}
	for _, l := range st.Listeners {
		if named[l.Name] {
			continue // it moves: both addresses have the flows of the name
		}
		named[l.Name] = true
		for fact, n := range l.Flows {
			counter(flowsDesc, float64(n), l.Name, fact)
		}
	}
}

// collectRuns is what the steering program has chosen.
func collectRuns(st *supervisor.Status, counter emit) {
	runsOf := map[[2]string]uint64{}
	for _, l := range st.Listeners {
		for reason, n := range l.Runs {
			runsOf[[2]string{l.Name, reason}] += n
		}
	}
	for of, n := range runsOf {
		counter(runsDesc, float64(n), of[0], of[1])
	}
	// What nobody took is exported from 0 on, for an alert.
	nobody := map[string]uint64{}
	if st.Steering == string(config.SteeringBPF) {
		nobody["sink"], nobody["lost"] = 0, 0
	}
	for _, runs := range st.Slots {
		if runs.Slot < 0 {
			maps.Copy(nobody, runs.Reasons)
			continue
		}
		for reason, n := range runs.Reasons {
			counter(slotRunsDesc, float64(n), strconv.Itoa(runs.Slot), reason)
		}
	}
	for reason, n := range nobody {
		counter(slotRunsDesc, float64(n), "none", reason)
	}
}

// collectIDs is the keys of connection IDs, where any has ever been known.
func collectIDs(st *supervisor.Status, gauge emit) {
	ids := st.ConnectionIDs
	if ids == nil {
		return
	}
	gauge(idConfigDesc, float64(ids.Encode))
	gauge(idKeysDesc, float64(len(ids.Read)-len(ids.Retiring)), "in_file")
	gauge(idKeysDesc, float64(len(ids.Retiring)), "retiring")
	gauge(idRefusedDesc, oneIf(ids.Problem != ""))
}

// collectSpans is what became of spans, on each of their ways.
func collectSpans(st *supervisor.Status, counter emit) {
	for result, n := range map[string]uint64{"exported": st.Spans.Export.Exported, "failed": st.Spans.Export.Failed, "dropped": st.Spans.Export.Dropped} {
		counter(exportDesc, float64(n), result)
	}
	for result, n := range map[string]uint64{"kept": st.Spans.Store.Kept, "failed": st.Spans.Store.Failed, "dropped": st.Spans.Store.Dropped} {
		counter(storeDesc, float64(n), result)
	}
	for result, n := range map[string]uint64{"kept": st.Spans.Received.Kept, "sampled_out": st.Spans.Received.Sampled, "invalid": st.Spans.Received.Invalid} {
		counter(intakeDesc, float64(n), result)
	}
	counter(refusalsDesc, float64(st.Spans.Received.Refused))
}
