package release

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// plot draws samples as SVG: each quantity relative to its first value, so that
// what grows leaves the line at 1.
func plot(samples []sample) []byte {
	const width, height, left, bottom = 720, 360, 50, 40
	series := []struct {
		name, color string
		of          func(sample) int
	}{
		{"descriptors", "#1b6ca8", func(s sample) int { return s.descriptors }},
		{"goroutines", "#c0392b", func(s sample) int { return s.goroutines }},
		{"threads", "#8e44ad", func(s sample) int { return s.threads }},
		{"pins", "#27ae60", func(s sample) int { return s.pins }},
		{"cgroups", "#7f8c8d", func(s sample) int { return s.groups }},
		{"resident memory", "#d68910", func(s sample) int { return s.kilobytes }},
	}
	last := samples[len(samples)-1].release
	x := func(release int) float64 { return left + float64(release)/float64(last)*(width-left-150) }
	y := func(ratio float64) float64 { return (height - bottom) * (1 - ratio/2) }

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>`, width, height)
	for _, ratio := range []float64{0, 0.5, 1, 1.5} {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%.1f" stroke="#ddd"/><text x="8" y="%.1f">%.1f x</text>`, left, y(ratio), x(last), y(ratio)+4, ratio)
	}
	fmt.Fprintf(&b, `<text x="%.0f" y="%d">releases (%d to %d)</text>`, x(last/2)-40, height-12, samples[0].release, last)
	for i, s := range series {
		first := max(s.of(samples[0]), 1)
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="`, s.color)
		for _, p := range samples {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(p.release), y(min(float64(s.of(p))/float64(first), 2)))
		}
		fmt.Fprintf(&b, `"/><text x="%.0f" y="%d" fill="%s">%s: %d → %d</text>`, x(last)+8, 30+i*18, s.color, s.name, s.of(samples[0]), s.of(samples[len(samples)-1]))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
