package config

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/netip"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"
)

// source and balancerSource are the files that declare the types. Their doc
// comments are the descriptions of the schema, so that each key is explained once.
//
//go:embed config.go
var source []byte

//go:embed balancer.go
var balancerSource []byte

// Schema is the JSON Schema of the file, for editors and other tools. It says
// what a key takes; what keys mean together is known to [Parse] alone.
func Schema() ([]byte, error) {
	comments := map[string]string{}
	for _, file := range [][]byte{source, balancerSource} {
		more, err := docComments(file)
		if err != nil {
			return nil, fmt.Errorf("read the descriptions of the schema: %w", err)
		}
		maps.Copy(comments, more)
	}
	r := jsonschema.Reflector{
		Anonymous:                  true,
		DoNotReference:             true,
		FieldNameTag:               "yaml",
		RequiredFromJSONSchemaTags: true,
		Mapper:                     schemaOf,
		LookupComment: func(t reflect.Type, field string) string {
			return comments[strings.TrimSuffix(t.Name()+"."+field, ".")]
		},
	}
	schema := r.ReflectFromType(configType)
	schema.Title = "Baton configuration"
	// A node's file, a balancer's, or both in one.
	schema.AnyOf = []*jsonschema.Schema{{Required: []string{"listeners", "routes", "upstreams"}}, {Required: []string{"balancer"}}}
	text, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode schema: %w", err)
	}
	return append(text, '\n'), nil
}

// schemaOf is the schema of the types that are written as text.
func schemaOf(t reflect.Type) *jsonschema.Schema {
	switch t {
	case durationType:
		return &jsonschema.Schema{Type: "string", Pattern: durationPattern, Examples: []any{"5s"}}
	case reflect.TypeFor[Size]():
		return &jsonschema.Schema{Type: "string", Pattern: sizePattern.String(), Examples: []any{"64KiB"}}
	case reflect.TypeFor[Percent]():
		return &jsonschema.Schema{Type: "string", Pattern: percentPattern.String(), Examples: []any{"25%"}}
	case reflect.TypeFor[netip.Prefix]():
		return &jsonschema.Schema{Type: "string", Examples: []any{"10.0.0.0/8"}}
	case reflect.TypeFor[Protocol]():
		return enum(protocols)
	case reflect.TypeFor[UpstreamProtocol]():
		return enum(upstreamProtocols)
	case reflect.TypeFor[WorkerChoice]():
		return enum(workerChoices)
	case reflect.TypeFor[XDPMode]():
		return enum(xdpModes)
	case reflect.TypeFor[Forwarding]():
		return enum(forwardings)
	case reflect.TypeFor[ByteOrder]():
		return enum(byteOrders)
	case reflect.TypeFor[Steering]():
		return enum(steerings)
	}
	return nil
}

func enum[S ~string](values []S) *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string"}
	for _, v := range values {
		s.Enum = append(s.Enum, v)
	}
	return s
}

// docComments is the comments of the types and fields of a Go file, by Type
// and Type.Field.
func docComments(source []byte) (map[string]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", source, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	comments := map[string]string{}
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		for _, spec := range gen.Specs {
			typ := spec.(*ast.TypeSpec)
			comments[typ.Name.Name] = oneLine(gen.Doc)
			fields, ok := typ.Type.(*ast.StructType)
			if !ok {
				continue
			}
			for _, f := range fields.Fields.List {
				// A comment begins with the Go name; the reader of a schema knows the key.
				key := yamlName(reflect.StructTag(strings.Trim(f.Tag.Value, "`")))
				name := f.Names[0].Name
				if about, ok := strings.CutPrefix(oneLine(f.Doc), name+" "); ok {
					comments[typ.Name.Name+"."+name] = key + " " + about
				}
			}
		}
	}
	return comments, nil
}

// oneLine is the first paragraph of a comment.
func oneLine(doc *ast.CommentGroup) string {
	first, _, _ := strings.Cut(doc.Text(), "\n\n")
	return strings.Join(strings.Fields(first), " ")
}
