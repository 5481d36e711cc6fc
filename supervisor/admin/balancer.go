package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/baton-mesh/baton/supervisor/balancer"
)

// balancerCommands is what can be asked of a balancer.
func (srv *Server) balancerCommands(mux *http.ServeMux) {
	b := srv.balancer
	mux.HandleFunc("GET /v1/balancer", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, b.Status(), nil)
	})
	mux.HandleFunc("POST /v1/balancer/reload", func(w http.ResponseWriter, _ *http.Request) {
		done, err := b.Reload()
		answer(w, done, err)
	})
	mux.HandleFunc("POST /v1/balancer/reals/{name}/drain", func(w http.ResponseWriter, r *http.Request) {
		status, err := b.Drain(r.PathValue("name"), r.URL.Query().Has("undo"))
		answer(w, status, err)
	})
	mux.HandleFunc("POST /v1/balancer/simulate", func(w http.ResponseWriter, r *http.Request) {
		var packet balancer.Packet
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
		d.DisallowUnknownFields()
		if err := d.Decode(&packet); err != nil {
			http.Error(w, fmt.Sprintf("packet: %v", err), http.StatusBadRequest)
			return
		}
		where, err := b.Simulate(packet)
		answer(w, where, err)
	})
}

// BalancerStatus asks where everything of the balancer stands.
func (c *Client) BalancerStatus(ctx context.Context) (st balancer.Status, err error) {
	err = c.do(ctx, http.MethodGet, "/v1/balancer", nil, &st)
	return st, err
}

// BalancerReload has the balancer read its file again.
func (c *Client) BalancerReload(ctx context.Context) (done balancer.Reloaded, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/balancer/reload", nil, &done)
	return done, err
}

// DrainReal takes a real's new flows away, or gives them back.
func (c *Client) DrainReal(ctx context.Context, name string, undo bool) (st balancer.RealStatus, err error) {
	path := "/v1/balancer/reals/" + url.PathEscape(name) + "/drain"
	if undo {
		path += "?undo"
	}
	err = c.do(ctx, http.MethodPost, path, nil, &st)
	return st, err
}

// Simulate asks where a packet would go.
func (c *Client) Simulate(ctx context.Context, packet balancer.Packet) (where balancer.Where, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/balancer/simulate", packet, &where)
	return where, err
}
