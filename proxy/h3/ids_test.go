package h3

import (
	"testing"

	"github.com/baton-mesh/baton/proxy/keys"
	"github.com/baton-mesh/baton/quicid"
)

// IDs are written under what the page says at the moment.
func TestIDsFollowThePage(t *testing.T) {
	page, err := keys.New()
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	shared, err := keys.Open(page.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	owner := quicid.ID{ServerID: 77, Slot: 3, Worker: 1}
	known := map[quicid.Config]quicid.Key{1: {1}, 4: {4}}
	reader, err := quicid.NewKeys(known)
	if err != nil {
		t.Fatal(err)
	}
	ids := &IDs{Owner: owner, Keys: shared}
	for _, config := range []quicid.Config{quicid.Readable, 1, 1, 4, quicid.Readable} {
		page.WriteIDs(keys.IDs{Config: config, Key: known[config]})
		for range 2 {
			id, err := ids.GenerateConnectionID()
			if err != nil {
				t.Fatal(err)
			}
			if got, under, ok := reader.Decode(id.Bytes()); !ok || under != config || got != owner || id.Len() != ids.ConnectionIDLen() {
				t.Errorf("config %d: %x is %+v under %d", config, id.Bytes(), got, under)
			}
		}
	}
	// What cannot be is refused, as long as there was nothing better.
	page.WriteIDs(keys.IDs{Config: quicid.Unroutable})
	if _, err := ids.GenerateConnectionID(); err != nil {
		t.Errorf("with the keys of before: %v", err)
	}
	fresh := &IDs{Owner: owner, Keys: shared}
	for range 2 {
		if _, err := fresh.GenerateConnectionID(); err == nil {
			t.Error("an owner is shown that was to be hidden")
		}
	}
	page.WriteIDs(keys.IDs{})
	if _, err := fresh.GenerateConnectionID(); err != nil {
		t.Error(err)
	}
}

// Without a page IDs are readable, without a node's number they name nobody.
func TestIDsWithoutKeys(t *testing.T) {
	for want, owner := range map[quicid.Config]quicid.ID{quicid.Readable: {ServerID: 1}, quicid.Unroutable: {}} {
		id, err := (&IDs{Owner: owner}).GenerateConnectionID()
		if got, ok := quicid.ConfigOf(id.Bytes()); err != nil || !ok || got != want {
			t.Errorf("%+v: %x, %v", owner, id.Bytes(), err)
		}
	}
}
