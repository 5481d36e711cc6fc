package trace

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

const (
	// atOnce bounds the exports that a generation has decoded at the same time.
	atOnce = 2
	// intakeTimeout bounds the time that a generation takes to send one.
	intakeTimeout = 10 * time.Second
)

// IntakeCounts says what generations have sent, over all of them.
type IntakeCounts struct {
	Kept    uint64 `json:"kept"`    // spans
	Sampled uint64 `json:"sampled"` // spans that the sampling left out
	Invalid uint64 `json:"invalid"` // spans without valid IDs
	Refused uint64 `json:"refused"` // exports: too large, too many, not OTLP
}

// Intakes is what the endpoints of all generations share. Its zero value works.
type Intakes struct {
	sampler                         Sampler
	kept, sampled, invalid, refused atomic.Uint64
}

// Counts are since the start.
func (a *Intakes) Counts() IntakeCounts {
	return IntakeCounts{a.kept.Load(), a.sampled.Load(), a.invalid.Load(), a.refused.Load()}
}

// Intake receives the spans of one generation, by OTLP over HTTP with protobuf,
// on a loopback port of its own: that is how it is known whose they are.
type Intake struct {
	all    *Intakes
	tag    []*commonpb.KeyValue
	to     func(*tracepb.ResourceSpans)
	tokens chan struct{}
	server *http.Server
	listen net.Listener
	ended  chan struct{}
}

// Listen opens an endpoint. tag is put on the resource of all that comes in, in
// the place of what the sender says of the same name.
func (a *Intakes) Listen(tag []*commonpb.KeyValue, to func(*tracepb.ResourceSpans)) (*Intake, error) {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("endpoint for spans: %w", err)
	}
	in := &Intake{all: a, tag: tag, to: to, tokens: make(chan struct{}, atOnce), listen: l, ended: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle("POST /v1/traces", in)
	in.server = &http.Server{
		Handler: mux, ReadTimeout: intakeTimeout, WriteTimeout: intakeTimeout,
		IdleTimeout: 6 * intakeTimeout, MaxHeaderBytes: 16 << 10,
	}
	go func() {
		defer close(in.ended)
		in.server.Serve(l) // returns when closed
	}()
	return in, nil
}

// Endpoint is what OTEL_EXPORTER_OTLP_ENDPOINT is to be.
func (in *Intake) Endpoint() string { return "http://" + in.listen.Addr().String() }

// Close ends the endpoint, and every connection to it when what was being sent
// has been read, or soon.
func (in *Intake) Close() {
	if in == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if in.server.Shutdown(ctx) != nil {
		in.server.Close()
	}
	<-in.ended
}

// ServeHTTP takes one export.
func (in *Intake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case in.tokens <- struct{}{}:
		defer func() { <-in.tokens }()
	default:
		in.all.refused.Add(1)
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many exports at once", http.StatusTooManyRequests)
		return
	}
	spans, code, err := read(w, r)
	if err != nil {
		in.all.refused.Add(1)
		http.Error(w, err.Error(), code)
		return
	}
	in.take(spans)
	w.Header().Set("Content-Type", "application/x-protobuf") // an empty ExportTraceServiceResponse
}

// read decodes an export, and says with which status it is refused.
func read(w http.ResponseWriter, r *http.Request) ([]*tracepb.ResourceSpans, int, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-protobuf" {
		return nil, http.StatusUnsupportedMediaType, errors.New("this endpoint reads application/x-protobuf (OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBody))
	if err != nil {
		return nil, http.StatusRequestEntityTooLarge, err
	}
	switch r.Header.Get("Content-Encoding") {
	case "", "identity":
	case "gzip":
		if body, err = unpack(body); err != nil {
			return nil, http.StatusBadRequest, fmt.Errorf("gzip: %w", err)
		}
	default:
		return nil, http.StatusUnsupportedMediaType, errors.New("this endpoint reads gzip and identity")
	}
	spans, err := decode(body)
	if err != nil {
		return nil, http.StatusBadRequest, err
	}
	return spans, http.StatusOK, nil
}

func unpack(packed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(z, mostBody+1))
	if err == nil && len(body) > mostBody {
		err = fmt.Errorf("more than %d bytes", mostBody)
	}
	return body, err
}

// take hands on what is valid and kept, tagged.
func (in *Intake) take(spans []*tracepb.ResourceSpans) {
	each(spans, func(s *tracepb.Span) bool {
		ok := s != nil && len(s.TraceId) == 16 && len(s.SpanId) == 8
		if !ok {
			in.all.invalid.Add(1)
		}
		return ok
	})
	kept, sampled := in.all.sampler.Choose(spans)
	in.all.kept.Add(uint64(kept))
	in.all.sampled.Add(uint64(sampled))
	for _, rs := range spans {
		if count(rs) > 0 {
			tagResource(rs, in.tag)
			in.to(rs)
		}
	}
}
