package balancer

import "errors"

// Program is the XDP program with its tables.
type Program struct {
	Kernel
	Hanger
}

// Open loads the program, with the tables that the process before it has left.
func Open(string) (*Program, error) { return nil, errors.New("the XDP program is not built yet") }

// Remove takes the program off all interfaces, with its tables.
func Remove(string) error { return errors.New("the XDP program is not built yet") }

// Close ends the use of the tables. They stay, and the program goes on.
func (p *Program) Close() error { return nil }
