package trace

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// JSON is spans as OTLP/JSON: as protobuf has it, but IDs in hexadecimal and
// enumerations as numbers (OTLP specification, "JSON Protobuf Encoding").
func JSON(spans *tracepb.TracesData) ([]byte, error) {
	text, err := protojson.MarshalOptions{UseEnumNumbers: true}.Marshal(spans)
	if err != nil {
		return nil, fmt.Errorf("encode spans: %w", err)
	}
	return recode(text, func(id string) (string, error) {
		raw, err := base64.StdEncoding.DecodeString(id)
		return hex.EncodeToString(raw), err
	})
}

// ParseJSON reads OTLP/JSON.
func ParseJSON(text []byte) (*tracepb.TracesData, error) {
	text, err := recode(text, func(id string) (string, error) {
		raw, err := hex.DecodeString(id)
		return base64.StdEncoding.EncodeToString(raw), err
	})
	if err != nil {
		return nil, err
	}
	spans := new(tracepb.TracesData)
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, spans); err != nil {
		return nil, fmt.Errorf("decode spans: %w", err)
	}
	return spans, nil
}

// recode writes every ID in another way.
func recode(text []byte, id func(string) (string, error)) ([]byte, error) {
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("spans: %w", err)
	}
	if err := recodeBelow(tree, id); err != nil {
		return nil, fmt.Errorf("spans: an ID: %w", err)
	}
	return json.Marshal(tree)
}

// recodeBelow works in place. Attributes are lists of key and value, so no name
// of theirs is taken for an ID.
func recodeBelow(v any, id func(string) (string, error)) (err error) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			err = errors.Join(err, recodeBelow(e, id))
		}
	case map[string]any:
		for key, e := range v {
			text, ok := e.(string)
			switch {
			case !ok:
				err = errors.Join(err, recodeBelow(e, id))
			case key == "traceId" || key == "spanId" || key == "parentSpanId":
				var wrong error
				v[key], wrong = id(text)
				err = errors.Join(err, wrong)
			}
		}
	}
	return err
}
