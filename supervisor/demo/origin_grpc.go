package demo

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// echoCall answers one message with itself, later if the request says so.
func echoCall(w http.ResponseWriter, r *http.Request) {
	ms, err := atMost(r.Header.Get(grpcDelay), grpcDelay, 600_000)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	grpcHead(w)
	message, err := readGRPCMessage(r.Body)
	if err != nil {
		grpcStatus(w, 13, "no message: "+err.Error())
		return
	}
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
	case <-r.Context().Done():
		return
	}
	w.Write(grpcMessage(message))
	grpcStatus(w, 0, "")
}

// echoMessages answers each message with itself until there are no more.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	grpcHead(w)
	flush := http.NewResponseController(w)
	for {
		message, err := readGRPCMessage(r.Body)
		if errors.Is(err, io.EOF) {
			grpcStatus(w, 0, "")
			return
		}
		if err != nil {
			return // the client has gone
		}
		if _, err := w.Write(grpcMessage(message)); err != nil {
			return
		}
		if err := flush.Flush(); err != nil {
			return
		}
	}
}

func grpcHead(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
}

// grpcStatus ends a call with a status code of gRPC: 0 is OK, 13 is INTERNAL.
func grpcStatus(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Grpc-Status", fmt.Sprint(code))
	w.Header().Set("Grpc-Message", message)
}
