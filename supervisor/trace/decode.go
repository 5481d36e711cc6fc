package trace

import (
	"errors"
	"fmt"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// mostBody bounds an export, before and after it is unpacked.
	mostBody = 4 << 20
	// mostSpans bounds the spans of one export.
	mostSpans = 16384
	// mostMessages bounds the parts of one export: spans, attributes, events and
	// what is in them. Two octets on the wire can be a message of hundreds in
	// memory, so they are counted before they are decoded.
	mostMessages = 256 << 10
	// mostDepth bounds how deep they are in each other.
	mostDepth = 32
)

var tracesData = new(tracepb.TracesData).ProtoReflect().Descriptor()

// decode reads an ExportTraceServiceRequest, which on the wire is the same as
// TracesData.
func decode(body []byte) ([]*tracepb.ResourceSpans, error) {
	left := mostMessages
	if err := measure(tracesData, body, &left, mostDepth); err != nil {
		return nil, fmt.Errorf("not OTLP: %w", err)
	}
	var td tracepb.TracesData
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &td); err != nil {
		return nil, fmt.Errorf("not OTLP: %w", err)
	}
	n := 0
	for _, rs := range td.ResourceSpans {
		n += count(rs)
	}
	if n > mostSpans {
		return nil, fmt.Errorf("%d spans, more than %d", n, mostSpans)
	}
	return td.ResourceSpans, nil
}

// measure counts the elements of a message down from left.
func measure(of protoreflect.MessageDescriptor, b []byte, left *int, depth int) error {
	if depth == 0 {
		return fmt.Errorf("more than %d messages in each other", mostDepth)
	}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		value := protowire.ConsumeFieldValue(number, kind, b)
		if value < 0 {
			return protowire.ParseError(value)
		}
		if *left--; *left < 0 {
			return errors.New("too many parts")
		}
		field := of.Fields().ByNumber(number)
		if kind == protowire.BytesType && field != nil && field.Message() != nil {
			inner, _ := protowire.ConsumeBytes(b)
			if err := measure(field.Message(), inner, left, depth-1); err != nil {
				return err
			}
		}
		b = b[value:]
	}
	return nil
}
