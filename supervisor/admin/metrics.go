package admin

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

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
	runsDesc        = prometheus.NewDesc("baton_steering_runs_total", "How often the steering program chose, by listener, slot (none: no slot) and reason. A flow can take more than one run.", []string{"listener", "slot", "reason"}, nil)
)

func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{readyDesc, currentDesc, generationsDesc, releasesDesc, stageDesc, runsDesc} {
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
	ready := 0.0
	if c.supervisor.Ready() {
		ready = 1
	}
	gauge(readyDesc, ready)
	gauge(currentDesc, float64(st.Current))
	byState := map[supervisor.State]int{supervisor.Starting: 0, supervisor.Ready: 0, supervisor.Serving: 0, supervisor.Draining: 0}
	for _, g := range st.Generations {
		byState[g.State]++
	}
	for state, n := range byState {
		gauge(generationsDesc, float64(n), string(state))
	}
	for outcome, n := range c.supervisor.Outcomes() {
		counter(releasesDesc, float64(n), string(outcome))
	}
	if st.Last != nil {
		for _, stage := range st.Last.Stages {
			gauge(stageDesc, stage.Milliseconds/1000, stage.Name)
		}
	}
	for _, l := range st.Listeners {
		for _, runs := range l.Runs {
			slot := strconv.Itoa(runs.Slot)
			if runs.Slot < 0 {
				slot = "none"
			}
			for reason, n := range runs.Reasons {
				counter(runsDesc, float64(n), l.Name, slot, reason)
			}
		}
	}
}
