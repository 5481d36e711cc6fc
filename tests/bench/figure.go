package main

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Figure is what was measured several times. Its zero value is no measurement.
type Figure struct{ values []float64 }

func (f *Figure) add(v float64) { f.values = append(f.values, v) }

func (f Figure) sorted() []float64 { return slices.Sorted(slices.Values(f.values)) }

// Median is 0 where nothing was measured.
func (f Figure) Median() float64 {
	v := f.sorted()
	switch n := len(v); {
	case n == 0:
		return 0
	case n%2 == 1:
		return v[n/2]
	default:
		return (v[n/2-1] + v[n/2]) / 2
	}
}

// most is 0 where nothing was measured.
func (f Figure) most() float64 {
	if len(f.values) == 0 {
		return 0
	}
	return slices.Max(f.values)
}

// MarshalJSON writes median, extremes and number of the measurements.
func (f Figure) MarshalJSON() ([]byte, error) {
	if len(f.values) == 0 {
		return []byte("null"), nil
	}
	return json.Marshal(struct {
		Median float64 `json:"median"`
		Min    float64 `json:"min"`
		Max    float64 `json:"max"`
		N      int     `json:"n"`
	}{f.Median(), slices.Min(f.values), slices.Max(f.values), len(f.values)})
}

// text is the median and, in brackets, the extremes.
func (f Figure) text(digits int) string {
	if len(f.values) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.*f [%.*f–%.*f]", digits, f.Median(), digits, slices.Min(f.values), digits, slices.Max(f.values))
}
