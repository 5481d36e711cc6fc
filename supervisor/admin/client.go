package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/baton-mesh/baton/supervisor"
)

// Client speaks to the supervisor or balancer behind a socket.
type Client struct {
	socket string
	http   *http.Client
}

// Dial returns a client; it connects with the first request.
func Dial(socket string) *Client {
	return &Client{socket, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

// Status asks where everything stands.
func (c *Client) Status(ctx context.Context) (st supervisor.Status, err error) {
	err = c.do(ctx, http.MethodGet, "/v1/status", nil, &st)
	return st, err
}

// Releases asks for the releases that have ended, oldest first.
func (c *Client) Releases(ctx context.Context) (all []supervisor.Result, err error) {
	err = c.do(ctx, http.MethodGet, "/v1/releases", nil, &all)
	return all, err
}

// Trace asks for the spans of a release, as OTLP/JSON.
func (c *Client) Trace(ctx context.Context, id uint64) (spans json.RawMessage, err error) {
	err = c.do(ctx, http.MethodGet, fmt.Sprintf("/v1/releases/%d/trace", id), nil, &spans)
	return spans, err
}

// Release asks for a release and waits for its end.
func (c *Client) Release(ctx context.Context, req supervisor.Request) (res supervisor.Result, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/release", req, &res)
	return res, err
}

// Rollback goes back to the generation before and waits until that is done.
func (c *Client) Rollback(ctx context.Context) (res supervisor.Result, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/rollback", nil, &res)
	return res, err
}

// Pause keeps the share of the release that runs from growing. An error that
// wraps [supervisor.ErrRefused] says why it cannot be; so with Resume and Drain.
func (c *Client) Pause(ctx context.Context) (st supervisor.ReleaseStatus, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/pause", nil, &st)
	return st, err
}

// Resume lets a release that was paused go on.
func (c *Client) Resume(ctx context.Context) (st supervisor.ReleaseStatus, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/resume", nil, &st)
	return st, err
}

// Drain brings the end of a generation's drain forward.
func (c *Client) Drain(ctx context.Context, generation uint64, deadline time.Duration) (st supervisor.GenerationStatus, err error) {
	err = c.do(ctx, http.MethodPost, fmt.Sprintf("/v1/generations/%d/drain?deadline=%v", generation, deadline), nil, &st)
	return st, err
}

// answerPatience is how long a question may go unanswered. A status takes milliseconds;
// a machine that is busy has room with this.
var answerPatience = 30 * time.Second

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	outer := ctx
	if method == http.MethodGet { // what changes something is answered when that is over
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answerPatience)
		defer cancel()
	}
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://baton"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, context.DeadlineExceeded) && outer.Err() == nil:
		return fmt.Errorf("who listens on %s does not answer within %v: it is stopped or stuck. What it runs goes on; end it (kill -KILL, its pid is in the file lock of runtime_dir) and start another", c.socket, answerPatience)
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no supervisor answers on %s: is `baton run` running, and is this its admin.socket? If it has died, what it ran serves on, and the next one adopts it: start it again", c.socket)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s is for its owner alone: run this as root", c.socket)
	case err != nil:
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		text := strings.TrimSpace(string(said))
		if resp.StatusCode == http.StatusNotFound && text == "404 page not found" { // the mux's own
			return fmt.Errorf("who listens on %s %s", c.socket, lacks(path))
		}
		if resp.StatusCode == http.StatusUnprocessableEntity {
			return fmt.Errorf("%w: %s", supervisor.ErrRefused, strings.TrimPrefix(text, supervisor.ErrRefused.Error()+": "))
		}
		return errors.New(text)
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("the supervisor ended before it answered: %w", err)
	}
	return nil
}

// lacks says why a server does not know a path.
func lacks(path string) string {
	if strings.HasPrefix(path, "/v1/balancer") {
		return "runs no balancer: its configuration has none"
	}
	return "is a balancer alone, or of another version: see baton balance status"
}
