package spawn

import (
	"strings"
	"testing"
)

func TestParseStartTime(t *testing.T) {
	// A process may call itself anything, a bracket and a space included.
	stat := "42 (a) b) S " + strings.Repeat("1 ", 18) + "777 1 1\n"
	if got, err := parseStartTime([]byte(stat)); err != nil || got != 777 {
		t.Errorf("%d, %v", got, err)
	}
	if _, err := parseStartTime([]byte("nonsense")); err == nil {
		t.Error("nonsense was accepted")
	}
}
