package proxy_test

import (
	"encoding/xml"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestH2Spec runs another project's cases of HTTP/2's conformance, the strict
// ones too. BATON_TEST_H2SPEC is the path of h2spec, or 1 to build it.
func TestH2Spec(t *testing.T) {
	program := os.Getenv("BATON_TEST_H2SPEC")
	switch program {
	case "":
		t.Skip("builds h2spec, which takes the network: make conformance")
	case "1":
		program = buildH2Spec(t)
	}
	// What h2spec wants, and is right to be refused: the cases fail for these reasons.
	always := map[string]string{
		"http2/6.5.3 Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE": "net/http hangs up on a setting that comes twice",
		// RFC 9113, 8.1.1, lets a server send a response before it ends the stream.
		"http2/8.1.2.2 Sends a HEADERS frame that contains the connection-specific header field":                     "the answer is 400",
		`http2/8.1.2.2 Sends a HEADERS frame that contains the TE header field with any value other than "trailers"`: "the answer is 400",
	}
	withoutTLS := map[string]string{
		"http2/3.5 Sends invalid connection preface": "the port speaks HTTP/1.1 too, and the answer is its 400",
	}
	maps.Copy(withoutTLS, always)
	eachFlavour(t, func(t *testing.T, f flavour) {
		n := start(t, origin(t, func(w http.ResponseWriter, r *http.Request) { count(w, r) }), "", f.config...)
		host, port, _ := net.SplitHostPort(n.web)
		report := filepath.Join(t.TempDir(), "report.xml")
		args, known := []string{"--strict", "--timeout", "5", "--host", host, "--port", port, "--junit-report", report}, withoutTLS
		if f.scheme == "https" {
			args, known = append(args, "--tls", "--insecure"), always
		}
		out, _ := exec.CommandContext(t.Context(), program, args...).CombinedOutput() // it fails with any case
		cases, failed := readH2Spec(t, report)
		if cases < 140 {
			t.Fatalf("%d cases; it has more\n%s", cases, out)
		}
		for _, name := range failed {
			t.Logf("%s: %s", name, known[name])
		}
		if want := slices.Sorted(maps.Keys(known)); !slices.Equal(failed, want) {
			t.Errorf("%d of %d cases failed:\n%s\nknown are\n%s", len(failed), cases, strings.Join(failed, "\n"), strings.Join(want, "\n"))
		}
	})
}

// buildH2Spec builds the last version that is a Go module, in a module of its own.
func buildH2Spec(t *testing.T) string {
	const module = "github.com/summerwind/h2spec/cmd/h2spec"
	dir := t.TempDir()
	for _, args := range [][]string{
		{"mod", "init", "h2spec"},
		{"get", "-tool", module + "@v2.2.1+incompatible", "golang.org/x/net@v0.59.0"},
		{"build", "-o", "h2spec", module},
	} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	return filepath.Join(dir, "h2spec")
}

// readH2Spec returns how many cases were run and those that failed, sorted.
func readH2Spec(t *testing.T, report string) (cases int, failed []string) {
	t.Helper()
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var suites struct {
		Suites []struct {
			Cases []struct {
				Package string  `xml:"package,attr"`
				Name    string  `xml:"classname,attr"`
				Error   *string `xml:"error"`
				Failure *string `xml:"failure"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &suites); err != nil {
		t.Fatal(err)
	}
	for _, suite := range suites.Suites {
		for _, c := range suite.Cases {
			cases++
			if c.Error != nil || c.Failure != nil {
				failed = append(failed, c.Package+" "+c.Name)
			}
		}
	}
	slices.Sort(failed)
	return cases, failed
}
