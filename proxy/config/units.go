package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of bytes, written as 64KiB.
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}}

// UnmarshalText reads a whole number with an optional unit B, KiB, MiB or GiB.
func (s *Size) UnmarshalText(text []byte) error {
	digits, unit := strings.TrimSpace(string(text)), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return fmt.Errorf("%q is no size; write it as 64KiB", text)
	}
	*s = Size(n * unit)
	return nil
}

// MarshalText writes the size with the largest unit that divides it.
func (s Size) MarshalText() ([]byte, error) {
	for i := len(sizeUnits) - 2; i >= 0; i-- {
		if u := sizeUnits[i]; s > 0 && int64(s)%u.bytes == 0 {
			return fmt.Appendf(nil, "%d%s", int64(s)/u.bytes, u.suffix), nil
		}
	}
	return fmt.Appendf(nil, "%dB", int64(s)), nil
}

// Percent is a share between 0 and 1, written as 25%.
type Percent float64

// UnmarshalText reads a number above 0 and up to 100, followed by %.
func (p *Percent) UnmarshalText(text []byte) error {
	digits, ok := strings.CutSuffix(strings.TrimSpace(string(text)), "%")
	n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if !ok || err != nil || !(n > 0 && n <= 100) {
		return fmt.Errorf("%q is no share; write it as 25%%", text)
	}
	*p = Percent(n / 100)
	return nil
}

// MarshalText writes the share as a percentage.
func (p Percent) MarshalText() ([]byte, error) {
	return []byte(p.String()), nil
}

// String is the share as 25%.
func (p Percent) String() string { return strconv.FormatFloat(float64(p)*100, 'g', 12, 64) + "%" }
