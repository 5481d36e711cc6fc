package trace

import (
	"encoding/binary"
	"math/rand/v2"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
)

func newTraceID() (id trace.TraceID) {
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id
}

func newSpanID() (id trace.SpanID) {
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}

// attributesOf are attributes as the SDK has them. What Baton's own spans never
// have, maps and bytes, is left out.
func attributesOf(all []*commonpb.KeyValue) []attribute.KeyValue {
	var out []attribute.KeyValue
	for _, a := range all {
		switch v := a.Value.GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			out = append(out, attribute.String(a.Key, v.StringValue))
		case *commonpb.AnyValue_BoolValue:
			out = append(out, attribute.Bool(a.Key, v.BoolValue))
		case *commonpb.AnyValue_IntValue:
			out = append(out, attribute.Int64(a.Key, v.IntValue))
		case *commonpb.AnyValue_DoubleValue:
			out = append(out, attribute.Float64(a.Key, v.DoubleValue))
		case *commonpb.AnyValue_ArrayValue:
			var texts []string
			for _, e := range v.ArrayValue.GetValues() {
				texts = append(texts, e.GetStringValue())
			}
			out = append(out, attribute.StringSlice(a.Key, texts))
		}
	}
	return out
}
