package trace

import (
	"slices"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// TextValue is a text as an attribute of OTLP.
func TextValue(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

// IntValue is a number as an attribute.
func IntValue(key string, value int64) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: value}}}
}

// tagResource puts attributes on the resource of spans, in the place of those
// of the same name.
func tagResource(rs *tracepb.ResourceSpans, tag []*commonpb.KeyValue) {
	if rs.Resource == nil {
		rs.Resource = new(resourcepb.Resource)
	}
	others := slices.DeleteFunc(rs.Resource.Attributes, func(have *commonpb.KeyValue) bool {
		return have == nil || slices.ContainsFunc(tag, func(t *commonpb.KeyValue) bool { return t.Key == have.Key })
	})
	rs.Resource.Attributes = append(others, tag...)
}
