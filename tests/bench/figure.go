package main

import (
	"encoding/json"
	"fmt"
	"math"
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

// fewest is how many measurements an interval of 95 % takes.
const fewest = 6

// estimate is the median of the means of all pairs of measurements, and the interval
// that has the true one in 95 of 100 cases (Hodges and Lehmann, 1963, by Wilcoxon's signed
// ranks). Of what scatters evenly around its middle, as ratios of neighbours do, it
// tells as much as the median does of half as many measurements again. Of fewer
// than six it has no interval; low and high are then infinite.
func (f Figure) estimate() (middle, low, high float64) {
	var means Figure
	for i, v := range f.values {
		for _, w := range f.values[i:] {
			means.add((v + w) / 2)
		}
	}
	n := float64(len(f.values))
	if n < fewest {
		return means.Median(), math.Inf(-1), math.Inf(1)
	}
	// The signed ranks sum up to n(n+1)/4 in the mean.
	rank := int(n*(n+1)/4 - 1.96*math.Sqrt(n*(n+1)*(2*n+1)/24))
	sorted := means.sorted()
	return means.Median(), sorted[rank-1], sorted[len(sorted)-rank]
}

// estimateText is the estimate and, in brackets, its interval.
func (f Figure) estimateText(digits int) string {
	middle, low, high := f.estimate()
	switch {
	case len(f.values) == 0:
		return "–"
	case math.IsInf(high, 0):
		return fmt.Sprintf("%.*f [?]", digits, middle)
	}
	return fmt.Sprintf("%.*f [%.*f, %.*f]", digits, middle, digits, low, digits, high)
}

// MarshalJSON writes median, extremes and number of the measurements, and each of them
// in the order in which they were made.
func (f Figure) MarshalJSON() ([]byte, error) {
	if len(f.values) == 0 {
		return []byte("null"), nil
	}
	return json.Marshal(struct {
		Median float64   `json:"median"`
		Min    float64   `json:"min"`
		Max    float64   `json:"max"`
		N      int       `json:"n"`
		Values []float64 `json:"values"`
	}{f.Median(), slices.Min(f.values), slices.Max(f.values), len(f.values), f.values})
}

// text is the median and, in brackets, the extremes.
func (f Figure) text(digits int) string {
	if len(f.values) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.*f [%.*f–%.*f]", digits, f.Median(), digits, slices.Min(f.values), digits, slices.Max(f.values))
}
