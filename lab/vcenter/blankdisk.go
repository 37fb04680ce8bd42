package main

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"os"
)

const (
	sectorBytes = 512
	grainBytes  = 128 * sectorBytes
	tableLength = 512               // grain table entries per grain table
	atEnd       = ^uint64(0)        // the header's grain directory is in the footer
	streamFlags = 1 | 1<<16 | 1<<17 // newline test valid, compressed grains, markers
)

// Marker types of a streamOptimized VMDK (VMware, "Virtual Disk Format 5.0", Stream-Optimized Compressed Sparse Extents).
const (
	markerEnd = iota
	markerTable
	markerDirectory
	markerFooter
)

// sparseHeader is the format's SparseExtentHeader, little endian, packed.
type sparseHeader struct {
	Magic            uint32
	Version          uint32
	Flags            uint32
	Capacity         uint64
	GrainSize        uint64
	DescriptorOffset uint64
	DescriptorSize   uint64
	TableLength      uint32
	RedundantOffset  uint64
	DirectoryOffset  uint64
	Overhead         uint64
	Unclean          uint8
	Newlines         [4]byte
	Compression      uint16
	Padding          [433]byte
}

// writeBlankDisk makes a valid streamOptimized VMDK whose first grain begins with text and whose rest is zero.
// VMs without a disk of their own get one: every VM of the lab can really be exported.
func writeBlankDisk(path string, capacity int64, text string) error {
	var out bytes.Buffer
	header := sparseHeader{
		Magic: 0x564d444b, Version: 3, Flags: streamFlags,
		Capacity: uint64(capacity / sectorBytes), GrainSize: 128,
		DescriptorOffset: 1, DescriptorSize: 20, TableLength: tableLength,
		DirectoryOffset: atEnd, Overhead: 128, Newlines: [4]byte{'\n', ' ', '\r', '\n'}, Compression: 1,
	}
	put := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) } // a bytes.Buffer never fails
	pad := func(unit int) { out.Write(make([]byte, (unit-out.Len()%unit)%unit)) }
	marker := func(sectors uint64, kind uint32) uint64 {
		put(sectors)
		put(uint32(0))
		put(kind)
		pad(sectorBytes)
		return uint64(out.Len() / sectorBytes)
	}

	put(header)
	fmt.Fprintf(&out, "# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=ffffffff\n"+
		"createType=\"streamOptimized\"\n\n# Extent description\nRW %d SPARSE \"disk.vmdk\"\n\n"+
		"# The Disk Data Base\nddb.virtualHWVersion = \"13\"\nddb.adapterType = \"lsilogic\"\n", 0xfffffffe, header.Capacity)
	pad(grainBytes)

	grain := make([]byte, grainBytes)
	copy(grain, text)
	var deflated bytes.Buffer
	z := zlib.NewWriter(&deflated)
	_, _ = z.Write(grain)
	_ = z.Close()
	grainSector := uint32(out.Len() / sectorBytes)
	put(uint64(0))
	put(uint32(deflated.Len()))
	out.Write(deflated.Bytes())
	pad(sectorBytes)

	tableSector := marker(tableLength*4/sectorBytes, markerTable)
	put(append([]uint32{grainSector}, make([]uint32, tableLength-1)...))

	directory := make([]uint32, (capacity/grainBytes+tableLength-1)/tableLength)
	directory[0] = uint32(tableSector)
	header.DirectoryOffset = marker(uint64((len(directory)*4+sectorBytes-1)/sectorBytes), markerDirectory)
	put(directory)
	pad(sectorBytes)

	marker(1, markerFooter)
	put(header)
	marker(0, markerEnd)
	return os.WriteFile(path, out.Bytes(), 0o600)
}
