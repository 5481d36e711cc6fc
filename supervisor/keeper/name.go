package keeper

import "unsafe"

// namePointer is what the kernel is to call the process, which was executed by
// descriptor and would be named after a number.
func namePointer() unsafe.Pointer {
	name := [16]byte{}
	copy(name[:15], processName)
	return unsafe.Pointer(&name[0])
}
