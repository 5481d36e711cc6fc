package admin

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/baton-mesh/baton/supervisor/balancer"
)

// balancerCollector reads the balancer when it is scraped.
type balancerCollector struct{ balancer *balancer.Balancer }

var (
	attachedDesc    = prometheus.NewDesc("baton_balancer_attached", "Whether the program hangs on an interface (1) or not (0).", []string{"interface"}, nil)
	realStateDesc   = prometheus.NewDesc("baton_balancer_real_state", "1 for the state that a real is in: unknown, up, starting, drained, down, unreachable.", []string{"real", "state"}, nil)
	realShareDesc   = prometheus.NewDesc("baton_balancer_real_share", "What a real gets of its weight, 0 to 1.", []string{"real"}, nil)
	realPacketsDesc = prometheus.NewDesc("baton_balancer_real_packets_total", "Packets sent to a real, since it is in the configuration under its address.", []string{"real"}, nil)
	realOctetsDesc  = prometheus.NewDesc("baton_balancer_real_octets_total", "Octets of frames sent to a real.", []string{"real"}, nil)
	realFlowsDesc   = prometheus.NewDesc("baton_balancer_real_new_flows_total", "Flows that the hash gave a real.", []string{"real"}, nil)
	vipPacketsDesc  = prometheus.NewDesc("baton_balancer_vip_packets_total", "Packets for a VIP by what became of them (reason), and of what happened beside.", []string{"address", "port", "protocol", "reason"}, nil)
	vipOctetsDesc   = prometheus.NewDesc("baton_balancer_vip_octets_total", "Octets of frames for a VIP that were sent or left to this host.", []string{"address", "port", "protocol"}, nil)
	vipLocalDesc    = prometheus.NewDesc("baton_balancer_vip_local_octets_total", "Those of them left to this host.", []string{"address", "port", "protocol"}, nil)
	vipServingDesc  = prometheus.NewDesc("baton_balancer_vip_serving_reals", "Reals that get new flows of a VIP.", []string{"address", "port", "protocol"}, nil)
	reloadsDesc     = prometheus.NewDesc("baton_balancer_reloads_total", "Reloads, by result: succeeded, failed.", []string{"result"}, nil)

	balancerDescs = []*prometheus.Desc{
		attachedDesc, realStateDesc, realShareDesc, realPacketsDesc, realOctetsDesc, realFlowsDesc,
		vipPacketsDesc, vipOctetsDesc, vipLocalDesc, vipServingDesc, reloadsDesc,
	}
)

func (balancerCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range balancerDescs {
		ch <- d
	}
}

func (c balancerCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.balancer.Status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for _, i := range st.Interfaces {
		attached := 0.0
		if i.Attached {
			attached = 1
		}
		gauge(attachedDesc, attached, i.Name)
	}
	for _, r := range st.Reals {
		gauge(realStateDesc, 1, r.Name, string(r.State))
		gauge(realShareDesc, r.Share, r.Name)
		counter(realPacketsDesc, r.Packets, r.Name)
		counter(realOctetsDesc, r.Octets, r.Name)
		counter(realFlowsDesc, r.Flows, r.Name)
	}
	for _, v := range st.VIPs {
		port := strconv.Itoa(int(v.Port))
		for reason, n := range v.Packets {
			counter(vipPacketsDesc, n, v.Address, port, v.Protocol, reason)
		}
		counter(vipOctetsDesc, v.Octets, v.Address, port, v.Protocol)
		counter(vipLocalDesc, v.LocalOctets, v.Address, port, v.Protocol)
		gauge(vipServingDesc, float64(v.Serving), v.Address, port, v.Protocol)
	}
	counter(reloadsDesc, st.Reloads.Succeeded, "succeeded")
	counter(reloadsDesc, st.Reloads.Failed, "failed")
}
