package config

import (
	"math"
	"regexp"
	"strconv"
	"strings"
)

// A unitError is a text that a type of this package does not read.
type unitError struct{ reason, hint string }

func (e unitError) Error() string { return e.reason + "; " + e.hint }

// What the units look like. The schema prints the same patterns.
var (
	durationPattern = `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`
	sizePattern     = regexp.MustCompile(`^([0-9]+) ?(B|KiB|MiB|GiB)?$`)
	percentPattern  = regexp.MustCompile(`^([0-9]{1,3}(?:\.[0-9]+)?) ?%$`)
)

// Size is a number of bytes, written as 64KiB.
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}, {"", 1}}

// UnmarshalText reads a whole number with an optional unit B, KiB, MiB or GiB.
func (s *Size) UnmarshalText(text []byte) error {
	bad := unitError{strconv.Quote(string(text)) + " is no size", "write it as 64KiB"}
	part := sizePattern.FindSubmatch(text)
	if part == nil {
		return bad
	}
	n, err := strconv.ParseInt(string(part[1]), 10, 64)
	for _, u := range sizeUnits {
		if u.suffix == string(part[2]) {
			if err != nil || n > math.MaxInt64/u.bytes {
				return bad
			}
			*s = Size(n * u.bytes)
			return nil
		}
	}
	return bad
}

// MarshalText writes the size with the largest unit that divides it.
func (s Size) MarshalText() ([]byte, error) {
	for _, u := range sizeUnits {
		if int64(s)%u.bytes == 0 && (s != 0 || u.suffix == "B") {
			return []byte(strconv.FormatInt(int64(s)/u.bytes, 10) + u.suffix), nil
		}
	}
	return nil, nil // not reached: B divides every size
}

// Percent is a share between 0 and 1, written as 25%.
type Percent float64

// percentSteps is how many shares there are: 0.01 % to 100 %. A finer one
// would be lost in the 16 bits that steering keeps for a weight.
const percentSteps = 10000

// UnmarshalText reads a number from 0.01 to 100 with at most two decimals,
// followed by %.
func (p *Percent) UnmarshalText(text []byte) error {
	quoted := strconv.Quote(string(text))
	part := percentPattern.FindSubmatch(text)
	if part == nil {
		return unitError{quoted + " is no share", "write it as 25%"}
	}
	n, err := strconv.ParseFloat(string(part[1]), 64)
	if err != nil || n > 100 {
		return unitError{quoted + " is more than everything", "write at most 100%"}
	}
	steps := math.Round(n / 100 * percentSteps)
	if steps < 1 || math.Abs(n/100*percentSteps-steps) > 1e-6 {
		return unitError{quoted + " is too fine a share", "write a multiple of 0.01%, and at least that"}
	}
	*p = Percent(steps / percentSteps)
	return nil
}

// MarshalText writes the share as a percentage.
func (p Percent) MarshalText() ([]byte, error) {
	return []byte(p.String()), nil
}

// String is the share as 25%.
func (p Percent) String() string {
	return strings.TrimSpace(strconv.FormatFloat(float64(p)*100, 'g', 12, 64)) + "%"
}
