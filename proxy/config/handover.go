package config

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// HandOver writes the configuration for a generation, private keys and all.
// [Receive] reads it back to an equal one, but for the balancer and the keys of connection
// IDs, which come another way, wherever and as whoever it runs. It is JSON, for with thousands of listeners reading YAML takes a second.
func (c *Config) HandOver() ([]byte, error) {
	handed := *c
	handed.Balancer, handed.ConnectionIDs = nil, ConnectionIDs{} // no generation's business
	data, err := json.Marshal(handed)
	if err != nil {
		return nil, fmt.Errorf("marshal configuration: %w", err)
	}
	return data, nil
}

// Receive reads what [Config.HandOver] has written, and validates it: a
// supervisor and a generation of different versions need not agree on what is
// right. Text that is no such thing is read by [Parse], as from a file.
func Receive(name string, data []byte) (*Config, error) {
	if !bytes.HasPrefix(data, []byte(`{"Node":`)) {
		return Parse(name, data, nil)
	}
	c := new(Config)
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(c); err != nil {
		return nil, fmt.Errorf("%s: %w (does the supervisor have another version?)", name, err)
	}
	r := newReport(name)
	validator{r, c}.all()
	if len(r.mistakes) > 0 {
		return nil, r.sorted()
	}
	return c, nil
}
