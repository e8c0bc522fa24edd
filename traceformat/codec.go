package traceformat

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var errOrder = errors.New("fields are not in order")

// appendFields appends the fields of r that are known, in the order of their
// numbers. See FORMAT.md.
func appendFields(b []byte, r *Row) []byte {
	for i := range columns {
		b = columns[i].field.encode(b, columns[i].tag, r)
	}
	return b
}

// decodeFields reads what appendFields wrote into r, which is zero. Memory of
// prev is reused.
func decodeFields(r, prev *Row, b []byte) error {
	var last uint64
	for len(b) > 0 {
		key, n := binary.Uvarint(b)
		if n <= 0 {
			return errShort
		}
		b = b[n:]
		tag := key >> wireBits
		if tag <= last {
			return errOrder
		}
		last = tag
		c := columnsByTag[tag]
		if c == nil {
			return fmt.Errorf("field %d is of a later version", tag)
		}
		var u uint64
		var payload []byte
		wire := int(key & (1<<wireBits - 1))
		switch wire {
		case wireVarint:
			if u, n = binary.Uvarint(b); n <= 0 {
				return fmt.Errorf("%s: %w", c.name, errShort)
			}
			b = b[n:]
		case wireFixed:
			if len(b) < 8 {
				return fmt.Errorf("%s: %w", c.name, errShort)
			}
			u, b = binary.LittleEndian.Uint64(b), b[8:]
		case wireBytes:
			size, n := binary.Uvarint(b)
			if n <= 0 || size > uint64(len(b)-n) {
				return fmt.Errorf("%s: %w", c.name, errShort)
			}
			payload, b = b[n:n+int(size)], b[n+int(size):]
		}
		if err := c.field.decode(r, prev, wire, u, payload); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// appendCut appends fields as a rows segment holds a row.
func appendCut(b, fields []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(fields)))
	return append(b, fields...)
}

// fieldsKey reads the key of an encoded row without the rest.
func fieldsKey(b []byte) (key [3]int64, err error) {
	for len(b) > 0 {
		k, n := binary.Uvarint(b)
		if n <= 0 {
			return key, errShort
		}
		b = b[n:]
		tag := k >> wireBits
		if tag > tagArrival {
			break
		}
		u, n := binary.Uvarint(b)
		if n <= 0 {
			return key, errShort
		}
		b = b[n:]
		switch {
		case k&(1<<wireBits-1) == wireBytes:
			if u > uint64(len(b)) {
				return key, errShort
			}
			b = b[u:]
		case tag == tagArrival:
			key[0] = unzigzag(u)
		case tag == tagID:
			key[1] = unzigzag(u)
		case tag == tagLap:
			key[2] = unzigzag(u)
		}
	}
	return key, nil
}
