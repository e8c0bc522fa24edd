package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"reprise/traceformat"
)

// A member is one key of a JSON object with the text of its value.
type member struct {
	key   string
	value []byte
}

func (m *member) isNull() bool { return string(m.value) == "null" }

// jsonRow is one line of a JSON Lines file: an object.
type jsonRow struct {
	*lines
	members []member
}

// next reads the next line. It must be one JSON object and no key may come
// twice.
func (r *jsonRow) next() error {
	line, err := r.lines.next()
	if err != nil {
		return err
	}
	r.members, err = parseObject(r.members[:0], line)
	if err != nil {
		return r.broken("%w", err)
	}
	if r.lines.rows == 0 && !bytes.Contains(line, []byte(`": `)) && !bytes.Contains(line, []byte(`, "`)) {
		r.style.add(compactJSON)
	}
	return nil
}

// compactJSON is the word of the style for JSON without spaces.
const compactJSON = "compact-json"

// get returns the value of key, or nil where it is absent or null.
func (r *jsonRow) get(key string) []byte { return get(r.members, key) }

func get(members []member, key string) []byte {
	for i := range members {
		if members[i].key == key && !members[i].isNull() {
			return members[i].value
		}
	}
	return nil
}

// maxMembers bounds the fields of one object. The widest format has some 20.
const maxMembers = 256

// parseObject appends the members of a JSON object to dst.
func parseObject(dst []member, b []byte) ([]member, error) {
	b = bytes.TrimSpace(b)
	if len(b) == 0 || b[0] != '{' {
		return nil, errors.New("not a JSON object")
	}
	if !json.Valid(b) {
		var v json.RawMessage
		return nil, fmt.Errorf("not JSON: %w", json.Unmarshal(b, &v))
	}
	return membersOf(dst, b)
}

// membersOf is parseObject for what is known to be JSON.
func membersOf(dst []member, b []byte) ([]member, error) {
	if len(b) == 0 || b[0] != '{' {
		return nil, errors.New("not a JSON object")
	}
	for key, value := range scanObject(b) {
		if len(dst) == maxMembers {
			return nil, fmt.Errorf("more than %d fields", maxMembers)
		}
		dst = append(dst, member{unquote(key), value})
	}
	for i := range dst {
		for j := range i {
			if dst[i].key == dst[j].key {
				return nil, fmt.Errorf("key %q comes twice", dst[i].key)
			}
		}
	}
	return dst, nil
}

// scanObject yields the quoted keys and the values of an object. Where b is cut
// or not JSON it yields what comes before that, and maybe a broken last value.
func scanObject(b []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		i := skipSpace(b, 0)
		if i >= len(b) || b[i] != '{' {
			return
		}
		i = skipSpace(b, i+1)
		for i < len(b) && b[i] == '"' {
			end := skipString(b, i)
			key := b[i:end]
			i = skipSpace(b, end)
			if i >= len(b) || b[i] != ':' {
				return
			}
			i = skipSpace(b, i+1)
			end = skipValue(b, i)
			if !yield(key, b[i:end]) {
				return
			}
			i = skipSpace(b, end)
			if i >= len(b) || b[i] != ',' {
				return
			}
			i = skipSpace(b, i+1)
		}
	}
}

// scanArray yields the elements of a JSON array.
func scanArray(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if len(b) == 0 || b[0] != '[' {
			return
		}
		for i := skipSpace(b, 1); i < len(b) && b[i] != ']'; {
			end := skipValue(b, i)
			if end == i || !yield(b[i:end]) {
				return
			}
			if i = skipSpace(b, end); i < len(b) && b[i] == ',' {
				i = skipSpace(b, i+1)
			}
		}
	}
}

func skipSpace(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// skipString returns the index after the string that starts at i.
func skipString(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(b)
}

// skipValue returns the index after the value that starts at i.
func skipValue(b []byte, i int) int {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			i = skipString(b, i)
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			if depth == 0 {
				return i + 1
			}
			if depth < 0 {
				return i
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return i
}

// unquote gives the text of a quoted JSON string.
func unquote(q []byte) string {
	if len(q) >= 2 && bytes.IndexByte(q, '\\') < 0 {
		return string(q[1 : len(q)-1])
	}
	var s string
	if json.Unmarshal(q, &s) != nil {
		return string(q)
	}
	return s
}

// jsonFormat tells the formats of JSON objects apart by the keys of the first,
// which head may cut. It gives one name or none: a key that belongs to one
// format only decides, whatever stands beside it.
func jsonFormat(head []byte) string {
	keys := keysOf(head)
	schema, versioned := keys["schema"]
	if event, ok := keys["event"]; ok {
		schema, versioned = keysOf([]byte(event))["schema"], true
	}
	switch {
	case versioned && schema == strconv.Quote(dynamoSchema):
		return dynamoName
	case versioned:
		return "" // a format, and none of these
	case isResult(keys) != "":
		return isResult(keys)
	case has(keys, "id", "block_size", "hash_id_scope"):
		return wekaName
	case has(keys, "chat_id", "timestamp", "input_length", "output_length"):
		return bailianName
	case hasAny(keys, "chat_id", "hash_id_scope", "requests"):
		return ""
	case hasAny(keys, "input_length", "input_tokens", "text_input", "messages", "payload") &&
		hasAny(keys, "timestamp", "created_time", "session_id", "delay", "delay_ms"):
		return mooncakeName
	}
	return ""
}

// keysOf returns the keys and values of the first object in head.
func keysOf(head []byte) map[string]string {
	keys := map[string]string{}
	for key, value := range scanObject(bytes.TrimPrefix(head, utf8BOM)) {
		keys[unquote(key)] = string(value)
	}
	return keys
}

func has(keys map[string]string, names ...string) bool {
	return !slices.ContainsFunc(names, func(n string) bool { _, ok := keys[n]; return !ok })
}

func hasAny(keys map[string]string, names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { _, ok := keys[n]; return ok })
}

// parseIDs reads an array of unsigned integers into dst, every bit of them.
func parseIDs(dst []uint64, b []byte) ([]uint64, error) {
	if len(b) < 2 || b[0] != '[' {
		return nil, errors.New("is not an array")
	}
	for element := range scanArray(b) {
		v, err := strconv.ParseUint(string(element), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("holds %.40q, want unsigned 64-bit integers", element)
		}
		if len(dst) == maxBlocks {
			return nil, fmt.Errorf("holds more than %d ids", maxBlocks)
		}
		dst = append(dst, v)
	}
	if dst == nil {
		dst = []uint64{}
	}
	return dst, nil
}

// parseText reads a string. Some writers put numbers where others put strings
// (session ids); they are taken as they are written.
func parseText(b []byte) (s string, quoted bool, err error) {
	switch {
	case len(b) == 0:
		return "", false, errors.New("is missing")
	case b[0] == '"':
		return unquote(b), true, nil
	case b[0] == '-' || b[0] >= '0' && b[0] <= '9':
		return string(b), false, nil
	}
	return "", false, errors.New("is not a string")
}

// jsonWriter writes objects in one of the two spellings in use: the one of
// Python's json.dumps, with spaces, and the compact one.
type jsonWriter struct {
	buf     []byte
	compact bool
	n       int
}

func (w *jsonWriter) open() { w.buf, w.n = append(w.buf, '{'), 0 }

func (w *jsonWriter) close() { w.buf = append(w.buf, '}') }

func (w *jsonWriter) sep() {
	w.buf = append(w.buf, ',')
	if !w.compact {
		w.buf = append(w.buf, ' ')
	}
}

func (w *jsonWriter) key(k string) {
	if w.n > 0 {
		w.sep()
	}
	w.n++
	w.buf = appendJSONString(w.buf, k)
	w.buf = append(w.buf, ':')
	if !w.compact {
		w.buf = append(w.buf, ' ')
	}
}

// raw writes a value that is JSON already.
func (w *jsonWriter) raw(k, v string) {
	w.key(k)
	w.buf = append(w.buf, v...)
}

func (w *jsonWriter) text(k, v string) {
	w.key(k)
	w.buf = appendJSONString(w.buf, v)
}

func (w *jsonWriter) ids(k string, ids []uint64) {
	w.key(k)
	w.buf = append(w.buf, '[')
	for i, id := range ids {
		if i > 0 {
			w.sep()
		}
		w.buf = strconv.AppendUint(w.buf, id, 10)
	}
	w.buf = append(w.buf, ']')
}

// appendJSONString quotes s without the escapes for HTML that encoding/json
// adds.
func appendJSONString(dst []byte, s string) []byte {
	plain := true
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= 0x7f {
			plain = false
			break
		}
	}
	if plain {
		dst = append(dst, '"')
		dst = append(dst, s...)
		return append(dst, '"')
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string cannot fail
	return append(dst, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
}

// extra builds Request.Extra. Keys are the source's field names.
type extra struct {
	w       jsonWriter
	keys    []string        // written so far
	dropped map[string]bool // fields left out, over all rows
}

func (e *extra) reset() {
	e.w = jsonWriter{buf: e.w.buf[:0], compact: true}
	e.keys = e.keys[:0]
	e.w.open()
}

// keep stores JSON as it stands.
func (e *extra) keep(key string, value []byte) {
	e.keys = append(e.keys, key)
	e.w.raw(key, string(value))
}

// text stores a string.
func (e *extra) text(key, value string) { e.keep(key, appendJSONString(nil, value)) }

// number stores the spelling of a number where want is not what a column gives
// back.
func (e *extra) number(key string, raw []byte, want string) {
	if string(raw) != want {
		e.keep(key, raw)
	}
}

// csv stores a field where want is not what columns give back.
func (e *extra) csv(key string, raw []byte, want string) {
	if string(raw) != want {
		e.text(key, string(raw))
	}
}

// column stores a CSV field that the format does not define, under the rules of
// field.
func (e *extra) column(key string, value []byte) {
	e.field(key, appendJSONString(nil, string(value)))
}

// field stores a JSON field that the format does not define, unless it may be
// text of a prompt or an answer.
func (e *extra) field(key string, value []byte) {
	name := key[strings.LastIndexByte(key, '.')+1:]
	if namedText(name, value) || !small(value) || slices.Contains(e.keys, key) {
		e.drop(key)
		return
	}
	var b bytes.Buffer
	if json.Compact(&b, value) == nil {
		e.keep(key, b.Bytes())
	}
}

func (e *extra) drop(key string) {
	if e.dropped == nil {
		e.dropped = map[string]bool{}
	}
	if len(e.dropped) < 64 {
		e.dropped[key] = true
	}
}

// result is the object, or nothing where it is empty.
func (e *extra) result() string {
	if e.w.n == 0 {
		return ""
	}
	e.w.close()
	return string(e.w.buf)
}

// appendExtra adds a field to Request.Extra.
func appendExtra(object, key, value string) string {
	if object == "" {
		return "{" + strconv.Quote(key) + ":" + value + "}"
	}
	return strings.TrimSuffix(object, "}") + "," + strconv.Quote(key) + ":" + value + "}"
}

// textFields are names under which tools of the field store text, or tokens
// that spell it. They never pass, however short.
var textFields = map[string]bool{
	"text": true, "text_input": true, "texts": true, "prompt": true, "prompts": true, "messages": true, "message": true,
	"payload": true, "tools": true, "system": true, "input": true, "output": true, "output_text": true,
	"completion": true, "response": true, "request": true, "content": true, "body": true, "query": true, "answer": true,
	"output_token_ids": true, "input_token_ids": true, "prompt_token_ids": true, "token_ids": true,
}

// Values of fields that no format defines pass where they are plainly data: an
// id is short, and so is a vector of settings. A sentence may be short as well,
// but then it stands under a name that was chosen for text.
const (
	maxExtraString = 128
	maxExtraValue  = 1024
)

// namedText reports whether a field is named as text and may hold some: a number
// under such a name is a count.
func namedText(name string, value []byte) bool {
	return textFields[strings.ToLower(name)] && len(value) > 0 && (value[0] == '"' || value[0] == '[' || value[0] == '{')
}

// small reports whether a JSON value is short in all its parts and holds no
// field that is named as text.
func small(v []byte) bool {
	if len(v) > maxExtraValue {
		return false
	}
	switch {
	case len(v) > 0 && v[0] == '"':
		return len(v) <= maxExtraString
	case len(v) > 0 && v[0] == '{':
		for key, value := range scanObject(v) {
			if namedText(unquote(key), value) || !small(value) {
				return false
			}
		}
	case len(v) > 0 && v[0] == '[':
		for element := range scanArray(v) {
			if !small(element) {
				return false
			}
		}
	}
	return true
}

// extraFields reads Request.Extra, whoever wrote it.
func extraFields(r *traceformat.Row) (map[string]string, error) {
	if r.Extra == "" {
		return nil, nil
	}
	members, err := parseObject(nil, []byte(r.Extra))
	if err != nil {
		return nil, fmt.Errorf("extra is not what this format allows: %w", err)
	}
	fields := make(map[string]string, len(members))
	for _, m := range members {
		fields[m.key] = string(m.value)
	}
	return fields, nil
}
