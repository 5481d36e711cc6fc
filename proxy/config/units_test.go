package config

import "testing"

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "0B": 0, "512": 512, "1 B": 1, "64KiB": 64 << 10, "1536MiB": 1536 << 20, "2GiB": 2 << 30,
		"8589934591GiB": 8589934591 << 30,
	} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q is %d, %v; want %d", text, s, err, want)
		}
		out, err := s.MarshalText()
		var again Size
		if err != nil || again.UnmarshalText(out) != nil || again != s {
			t.Errorf("%q is written as %q, %v", text, out, err)
		}
	}
	for _, text := range []string{"", "KiB", "-1B", "+1", "1.5KiB", "64kib", "64KB", "1  B", "8589934592GiB", "9223372036854775808", "1B\n"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read as a size", text)
		}
	}
	for size, want := range map[Size]string{0: "0B", 1: "1B", 1000: "1000B", 1024: "1KiB", 64 << 10: "64KiB", 1 << 40: "1024GiB"} {
		if got, _ := size.MarshalText(); string(got) != want {
			t.Errorf("%d is written as %s, want %s", size, got, want)
		}
	}
}

func TestPercent(t *testing.T) {
	for text, want := range map[string]Percent{"100%": 1, "25%": 0.25, "0.01%": 0.0001, "33.3 %": 0.333, "1.0%": 0.01} {
		var p Percent
		if err := p.UnmarshalText([]byte(text)); err != nil || p != want {
			t.Errorf("%q is %v, %v; want %v", text, float64(p), err, float64(want))
		}
	}
	for _, text := range []string{"", "%", "25", "0%", "0.00%", "0.001%", "33.333%", "100.01%", "999%", "-1%", "1e1%", "NaN%", "25%%"} {
		if err := new(Percent).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was read as a share", text)
		}
	}
	// Every share there is survives being written and read.
	for i := 1; i <= percentSteps; i++ {
		p, again := Percent(float64(i)/percentSteps), Percent(0)
		if err := again.UnmarshalText([]byte(p.String())); err != nil || again != p {
			t.Fatalf("%v is written as %s and read as %v, %v", float64(p), p, float64(again), err)
		}
	}
}
