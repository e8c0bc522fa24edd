package traceformat

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/parquet-go/parquet-go"
)

// Wire types of the journal, the low bits of a field's key.
const (
	wireVarint = 0 // zigzag varint
	wireFixed  = 1 // eight bytes, little endian
	wireBytes  = 2 // length as varint, then bytes
	wireBits   = 2
)

var (
	errWire  = errors.New("field has the wrong wire type")
	errRange = errors.New("value is out of range")
	errShort = errors.New("value is cut short")
	errUTF8  = errors.New("text is not UTF-8")
	errNull  = errors.New("null in a column that must not hold any")
)

type integer interface{ ~int16 | ~int32 | ~int64 }

var intKinds = []parquet.Kind{parquet.Int64, parquet.Int32}

// intValue is v in the physical type of its column.
func intValue[T integer](v T, wide bool) parquet.Value {
	if wide {
		return parquet.Int64Value(int64(v))
	}
	return parquet.Int32Value(int32(v))
}

// narrow converts to a field's type what a file or journal holds.
func narrow[T integer](x int64) (T, error) {
	if v := T(x); int64(v) == x {
		return v, nil
	}
	return 0, errRange
}

func appendVarint[T integer](b []byte, tag uint64, v T) []byte {
	b = binary.AppendUvarint(b, tag<<wireBits|wireVarint)
	return binary.AppendVarint(b, int64(v))
}

func decodeVarint[T integer](wire int, u uint64) (T, error) {
	if wire != wireVarint {
		return 0, errWire
	}
	return narrow[T](unzigzag(u))
}

func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// An intField always holds a value.
type intField[T integer] struct {
	at   func(*Row) *T
	wide bool
}

func (f intField[T]) kinds() []parquet.Kind { return intKinds }

func (f intField[T]) put(dst []parquet.Value, r *Row) []parquet.Value {
	return append(dst, intValue(*f.at(r), f.wide))
}

func (f intField[T]) newReader() fieldReader { return f }

func (f intField[T]) fill(rows []Row, s *valueStream) error {
	for len(rows) > 0 {
		vals, n, err := s.take(len(rows))
		if err != nil {
			return err
		}
		if vals == nil {
			return errNull
		}
		for i := range vals {
			if vals[i].IsNull() {
				return errNull
			}
			v, err := narrow[T](s.integer(vals[i]))
			if err != nil {
				return err
			}
			*f.at(&rows[i]) = v
		}
		rows = rows[n:]
	}
	return nil
}

// encode leaves out zero, which is what a decoder starts from.
func (f intField[T]) encode(b []byte, tag uint64, r *Row) []byte {
	if v := *f.at(r); v != 0 {
		return appendVarint(b, tag, v)
	}
	return b
}

func (f intField[T]) decode(r, _ *Row, wire int, u uint64, _ []byte) (err error) {
	*f.at(r), err = decodeVarint[T](wire, u)
	return err
}

func (f intField[T]) appendJSON(b []byte, r *Row) []byte {
	return strconv.AppendInt(b, int64(*f.at(r)), 10)
}

// An optField is an integer that may be unknown.
type optField[T integer] struct {
	at     func(*Row) *Opt[T]
	wide   bool
	quoted bool // in JSON
}

func (f optField[T]) kinds() []parquet.Kind { return intKinds }

func (f optField[T]) put(dst []parquet.Value, r *Row) []parquet.Value {
	if o := f.at(r); o.OK {
		dst = append(dst, intValue(o.V, f.wide))
		dst[len(dst)-1].SetDefinitionLevel(1)
	}
	return dst
}

func (f optField[T]) newReader() fieldReader { return f }

func (f optField[T]) fill(rows []Row, s *valueStream) error {
	for len(rows) > 0 {
		vals, n, err := s.take(len(rows))
		if err != nil {
			return err
		}
		for i := range vals {
			if vals[i].IsNull() {
				continue
			}
			v, err := narrow[T](s.integer(vals[i]))
			if err != nil {
				return err
			}
			*f.at(&rows[i]) = Some(v)
		}
		rows = rows[n:]
	}
	return nil
}

func (f optField[T]) encode(b []byte, tag uint64, r *Row) []byte {
	if o := f.at(r); o.OK {
		return appendVarint(b, tag, o.V)
	}
	return b
}

func (f optField[T]) decode(r, _ *Row, wire int, u uint64, _ []byte) error {
	v, err := decodeVarint[T](wire, u)
	*f.at(r) = Some(v)
	return err
}

func (f optField[T]) appendJSON(b []byte, r *Row) []byte {
	o := f.at(r)
	switch {
	case !o.OK:
		return b
	case f.quoted:
		b = append(b, '"')
		b = strconv.AppendInt(b, int64(o.V), 10)
		return append(b, '"')
	default:
		return strconv.AppendInt(b, int64(o.V), 10)
	}
}

type boolField struct{ at func(*Row) *Opt[bool] }

func (f boolField) kinds() []parquet.Kind { return []parquet.Kind{parquet.Boolean} }

func (f boolField) put(dst []parquet.Value, r *Row) []parquet.Value {
	if o := f.at(r); o.OK {
		dst = append(dst, parquet.BooleanValue(o.V))
		dst[len(dst)-1].SetDefinitionLevel(1)
	}
	return dst
}

func (f boolField) newReader() fieldReader { return f }

func (f boolField) fill(rows []Row, s *valueStream) error {
	for len(rows) > 0 {
		vals, n, err := s.take(len(rows))
		if err != nil {
			return err
		}
		for i := range vals {
			if !vals[i].IsNull() {
				*f.at(&rows[i]) = Some(vals[i].Boolean())
			}
		}
		rows = rows[n:]
	}
	return nil
}

func (f boolField) encode(b []byte, tag uint64, r *Row) []byte {
	switch o := f.at(r); {
	case !o.OK:
		return b
	case o.V:
		return appendVarint(b, tag, int64(1))
	default:
		return appendVarint(b, tag, int64(0))
	}
}

func (f boolField) decode(r, _ *Row, wire int, u uint64, _ []byte) error {
	v, err := decodeVarint[int64](wire, u)
	if err == nil && v != 0 && v != 1 {
		err = errRange
	}
	*f.at(r) = Some(v == 1)
	return err
}

func (f boolField) appendJSON(b []byte, r *Row) []byte {
	if o := f.at(r); o.OK {
		return strconv.AppendBool(b, o.V)
	}
	return b
}

type floatField struct{ at func(*Row) *Opt[float64] }

func (f floatField) kinds() []parquet.Kind { return []parquet.Kind{parquet.Double} }

func (f floatField) put(dst []parquet.Value, r *Row) []parquet.Value {
	if o := f.at(r); o.OK {
		dst = append(dst, parquet.DoubleValue(o.V))
		dst[len(dst)-1].SetDefinitionLevel(1)
	}
	return dst
}

func (f floatField) newReader() fieldReader { return f }

func (f floatField) fill(rows []Row, s *valueStream) error {
	for len(rows) > 0 {
		vals, n, err := s.take(len(rows))
		if err != nil {
			return err
		}
		for i := range vals {
			if !vals[i].IsNull() {
				*f.at(&rows[i]) = Some(vals[i].Double())
			}
		}
		rows = rows[n:]
	}
	return nil
}

func (f floatField) encode(b []byte, tag uint64, r *Row) []byte {
	o := f.at(r)
	if !o.OK {
		return b
	}
	b = binary.AppendUvarint(b, tag<<wireBits|wireFixed)
	return binary.LittleEndian.AppendUint64(b, math.Float64bits(o.V))
}

func (f floatField) decode(r, _ *Row, wire int, u uint64, _ []byte) error {
	if wire != wireFixed {
		return errWire
	}
	*f.at(r) = Some(math.Float64frombits(u))
	return nil
}

// appendJSON writes null for what JSON has no number for.
func (f floatField) appendJSON(b []byte, r *Row) []byte {
	o := f.at(r)
	switch {
	case !o.OK:
		return b
	case math.IsNaN(o.V) || math.IsInf(o.V, 0):
		return append(b, "null"...)
	default:
		return strconv.AppendFloat(b, o.V, 'g', -1, 64)
	}
}

// A stringField holds text; the empty string is unknown.
type stringField struct {
	at     func(*Row) *string
	few    bool // few distinct values: worth interning
	object bool // a JSON object
}

func (f stringField) kinds() []parquet.Kind { return []parquet.Kind{parquet.ByteArray} }

// put replaces bytes that are not UTF-8: a Parquet string that holds such is
// refused by other readers, and a row is not lost for it.
func (f stringField) put(dst []parquet.Value, r *Row) []parquet.Value {
	s := *f.at(r)
	if s == "" {
		return dst
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	dst = append(dst, stringValue(s))
	dst[len(dst)-1].SetDefinitionLevel(1)
	return dst
}

func (f stringField) newReader() fieldReader {
	if f.few {
		return &internReader{f: f}
	}
	return f
}

func (f stringField) fill(rows []Row, s *valueStream) error {
	for len(rows) > 0 {
		vals, n, err := s.take(len(rows))
		if err != nil {
			return err
		}
		for i := range vals {
			if !vals[i].IsNull() {
				*f.at(&rows[i]) = string(vals[i].ByteArray())
			}
		}
		rows = rows[n:]
	}
	return nil
}

// An internReader makes each distinct string once.
type internReader struct {
	f    stringField
	last string
	seen map[string]string
}

// maxInterned bounds what an internReader holds of a column that turns out to
// have many distinct values.
const maxInterned = 1 << 14

func (x *internReader) fill(rows []Row, s *valueStream) error {
	for len(rows) > 0 {
		vals, n, err := s.take(len(rows))
		if err != nil {
			return err
		}
		for i := range vals {
			if !vals[i].IsNull() {
				*x.f.at(&rows[i]) = x.intern(vals[i].ByteArray())
			}
		}
		rows = rows[n:]
	}
	return nil
}

func (x *internReader) intern(b []byte) string {
	if string(b) == x.last {
		return x.last
	}
	s, ok := x.seen[string(b)]
	if !ok {
		if x.seen == nil || len(x.seen) >= maxInterned {
			x.seen = map[string]string{}
		}
		s = string(b)
		x.seen[s] = s
	}
	x.last = s
	return s
}

func (f stringField) encode(b []byte, tag uint64, r *Row) []byte {
	s := *f.at(r)
	if s == "" {
		return b
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	b = binary.AppendUvarint(b, tag<<wireBits|wireBytes)
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func (f stringField) decode(r, prev *Row, wire int, _ uint64, b []byte) error {
	if wire != wireBytes {
		return errWire
	}
	if len(b) == 0 {
		return errShort
	}
	if !utf8.Valid(b) {
		return errUTF8
	}
	// Consecutive rows mostly repeat the strings of the one before.
	if s := *f.at(prev); string(b) == s {
		*f.at(r) = s
	} else {
		*f.at(r) = string(b)
	}
	return nil
}

func (f stringField) appendJSON(b []byte, r *Row) []byte {
	s := *f.at(r)
	if s == "" {
		return b
	}
	if f.object {
		buf := bytes.NewBuffer(b)
		if json.Compact(buf, []byte(s)) == nil {
			return buf.Bytes()
		}
	}
	q, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always marshals
	}
	return append(b, q...)
}

type item interface{ ~int32 | ~int64 | ~uint64 }

// An itemForm is how the journal stores the items of a list.
type itemForm int

const (
	blockItems itemForm = iota // eight bytes each, little endian; unsigned strings in JSON
	timeItems                  // zigzag varint of the difference to the item before
	countItems                 // zigzag varint
)

// A listField tells unknown (nil) from empty.
type listField[T item] struct {
	at   func(*Row) *[]T
	form itemForm
	wide bool
}

// Definition levels of a list column as this package writes it; 0 is null.
const (
	listEmpty = 1
	listItem  = 2
)

func (f listField[T]) kinds() []parquet.Kind { return intKinds }

func (f listField[T]) put(dst []parquet.Value, r *Row) []parquet.Value {
	list := *f.at(r)
	switch {
	case list == nil:
		return dst
	case len(list) == 0:
		dst = append(dst, parquet.Value{})
		dst[len(dst)-1].SetDefinitionLevel(listEmpty)
		return dst
	}
	first := len(dst)
	dst = slices.Grow(dst, len(list))[:first+len(list)]
	values := dst[first:]
	if f.wide {
		for i, x := range list {
			values[i] = parquet.Int64Value(int64(x))
		}
	} else {
		for i, x := range list {
			values[i] = parquet.Int32Value(int32(x))
		}
	}
	for i := range values {
		values[i].SetRepetitionLevel(1)
		values[i].SetDefinitionLevel(listItem)
	}
	values[0].SetRepetitionLevel(0)
	return dst
}

func (f listField[T]) newReader() fieldReader { return &listReader[T]{f: f} }

// A listReader keeps the items of one batch of rows in one array.
type listReader[T item] struct {
	f     listField[T]
	items []T
}

func (x *listReader[T]) fill(rows []Row, s *valueStream) error {
	x.items = x.items[:0]
	for i := range rows {
		p := x.f.at(&rows[i])
		v, err := s.next()
		if err != nil {
			return err
		}
		if v.RepetitionLevel() != 0 {
			return errors.New("a row starts within a list")
		}
		start := len(x.items)
		switch d := v.DefinitionLevel(); {
		case d < s.listDef-1:
			continue // unknown
		case d == s.listDef-1:
			*p = x.items[start:start:start]
			if *p == nil {
				*p = []T{}
			}
			continue
		}
		for {
			if v.IsNull() {
				return errNull
			}
			n := s.integer(*v)
			t := T(n)
			if int64(t) != n {
				return errRange
			}
			x.items = append(x.items, t)
			if v, err = s.more(); err != nil {
				return err
			}
			if v == nil {
				break
			}
		}
		*p = x.items[start:len(x.items):len(x.items)]
	}
	return nil
}

func (f listField[T]) encode(b []byte, tag uint64, r *Row) []byte {
	list := *f.at(r)
	if list == nil {
		return b
	}
	b = binary.AppendUvarint(b, tag<<wireBits|wireBytes)
	if f.form == blockItems {
		b = binary.AppendUvarint(b, uint64(8*len(list)))
		for _, v := range list {
			b = binary.LittleEndian.AppendUint64(b, uint64(v))
		}
		return b
	}
	// The length comes before items whose size is not known yet: leave room
	// for the longest and close the gap.
	at := len(b)
	b = append(b, make([]byte, binary.MaxVarintLen64)...)
	start := len(b)
	var last T
	for _, v := range list {
		b = binary.AppendVarint(b, int64(v)-int64(last))
		if f.form == timeItems {
			last = v
		}
	}
	n := len(b) - start
	w := binary.PutUvarint(b[at:], uint64(n))
	copy(b[at+w:], b[start:])
	return b[:at+w+n]
}

func (f listField[T]) decode(r, prev *Row, wire int, _ uint64, b []byte) error {
	if wire != wireBytes {
		return errWire
	}
	list := (*f.at(prev))[:0]
	if list == nil {
		list = []T{}
	}
	if f.form == blockItems {
		if len(b)%8 != 0 {
			return errShort
		}
		for ; len(b) > 0; b = b[8:] {
			list = append(list, T(binary.LittleEndian.Uint64(b)))
		}
		*f.at(r) = list
		return nil
	}
	var last int64
	for len(b) > 0 {
		d, n := binary.Varint(b)
		if n <= 0 {
			return errShort
		}
		b = b[n:]
		v := T(last + d)
		if int64(v) != last+d {
			return errRange
		}
		list = append(list, v)
		if f.form == timeItems {
			last += d
		}
	}
	*f.at(r) = list
	return nil
}

func (f listField[T]) appendJSON(b []byte, r *Row) []byte {
	list := *f.at(r)
	if list == nil {
		return b
	}
	b = append(b, '[')
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		if f.form == blockItems {
			b = append(b, '"')
			b = strconv.AppendUint(b, uint64(v), 10)
			b = append(b, '"')
		} else {
			b = strconv.AppendInt(b, int64(v), 10)
		}
	}
	return append(b, ']')
}

// AppendJSON appends the row as a JSON object: keys are the columns, in file
// order, and what is unknown is left out. Block ids and digests are strings of
// decimal digits, since few readers of JSON keep 64 bits of a number; extra is
// the object that it holds.
func (r *Row) AppendJSON(b []byte) []byte {
	b = append(b, '{')
	start := len(b)
	for i := range columns {
		mark := len(b)
		if mark > start {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, columns[i].name...)
		b = append(b, '"', ':')
		value := len(b)
		if b = columns[i].field.appendJSON(b, r); len(b) == value {
			b = b[:mark]
		}
	}
	return append(b, '}')
}

// MarshalJSON is [Row.AppendJSON].
func (r *Row) MarshalJSON() ([]byte, error) { return r.AppendJSON(nil), nil }

// stringValue is s without a copy: values are not written to.
func stringValue(s string) parquet.Value {
	return parquet.ByteArrayValue(unsafe.Slice(unsafe.StringData(s), len(s)))
}
