package traceformat

import (
	"reflect"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
)

// A column is everything that is known of one column. The schema, the writer,
// the reader, projection, the journal's row codec, the JSON of a row and the
// table in FORMAT.md all follow from the list of columns below, so that a new
// column is one new line.
type column struct {
	name string
	tag  uint64 // field number in the journal, never reused
	// typ is the type in FORMAT.md: int16, int32, int64, bool, double, string,
	// json, list<int64>, list<int32>.
	typ string
	// required columns hold a value in every row.
	required bool
	// mayLack says that a reader does without the column although it is
	// required of writers.
	mayLack bool
	doc     string
	node    parquet.Node
	field   field
}

func (c *column) list() bool { return strings.HasPrefix(c.typ, "list<") }

// A field moves one field between a row and its encodings.
type field interface {
	// kinds are the physical Parquet types that fill takes.
	kinds() []parquet.Kind
	// put appends the Parquet values of the field, none where it is unknown.
	// They carry no column index: they are written column by column.
	put(dst []parquet.Value, r *Row) []parquet.Value
	// newReader makes what fills the field from one open file.
	newReader() fieldReader
	// encode appends the journal's form, nothing where unknown.
	encode(b []byte, tag uint64, r *Row) []byte
	// decode reads what encode wrote: u is a varint or fixed value, b the
	// payload of a bytes field. Memory of the same field of prev is reused.
	decode(r, prev *Row, wire int, u uint64, b []byte) error
	// appendJSON appends the value, nothing where unknown.
	appendJSON(b []byte, r *Row) []byte
}

// A fieldReader fills one field of consecutive rows, which are zero.
type fieldReader interface {
	fill(rows []Row, s *valueStream) error
}

// Field numbers of the key of a row, which a sort reads without the rest.
const (
	tagID      = 1
	tagLap     = 2
	tagArrival = 5
)

// columns is the table, in file order. Field numbers rise with it.
var columns = []column{
	must(intColumn("id", tagID, "int64", func(r *Row) *int64 { return &r.ID }, "identity in this file, kept through every later step; with lap the key of a row")),
	lacking(must(intColumn("lap", tagLap, "int32", func(r *Row) *int32 { return &r.Lap }, "which repeat under `--loop`, from 0"))),
	stringColumn("origin", 3, func(r *Row) *string { return &r.Origin }, "after a merge: the file that the row came from"),
	optColumn("origin_id", 4, "int64", func(r *Row) *Opt[int64] { return &r.OriginID }, "after a merge: the row's id there"),
	must(intColumn("arrival_ns", tagArrival, "int64", func(r *Row) *time.Duration { return &r.Arrival }, "first byte of the request, from the start of the trace")),
	optColumn("session_id", 6, "int64", func(r *Row) *Opt[int64] { return &r.Session }, "conversation"),
	optColumn("parent_id", 7, "int64", func(r *Row) *Opt[int64] { return &r.Parent }, "id of the request that this one continues"),
	optColumn("turn", 8, "int32", func(r *Row) *Opt[int32] { return &r.Turn }, "position in the conversation, from 0"),
	optColumn("think_ns", 9, "int64", func(r *Row) *Opt[time.Duration] { return &r.Think }, "pause between the parent's answer and this request"),
	stringColumn("client_id", 10, func(r *Row) *string { return &r.Client }, "pseudonymous tenant"),
	stringColumn("model", 11, func(r *Row) *string { return &r.Model }, "model asked for"),
	stringColumn("endpoint", 12, func(r *Row) *string { return &r.Endpoint }, "`chat`, `completions`, `generate`, `messages`, `responses`, `embeddings`"),
	stringColumn("class", 13, func(r *Row) *string { return &r.Class }, "workload class"),
	optColumn("prompt_tokens", 14, "int32", func(r *Row) *Opt[int32] { return &r.PromptTokens }, "length of the prompt in the model's tokens"),
	optColumn("output_tokens", 15, "int32", func(r *Row) *Opt[int32] { return &r.OutputTokens }, "length of the answer"),
	stringColumn("prompt_tokens_source", 16, func(r *Row) *string { return &r.PromptTokensSource }, "how that was learnt: `usage`, `engine`, `tokenizer`, `events`, `bytes`"),
	stringColumn("output_tokens_source", 17, func(r *Row) *string { return &r.OutputTokensSource }, "the same of the answer"),
	optColumn("max_tokens", 18, "int32", func(r *Row) *Opt[int32] { return &r.MaxTokens }, "limit on the answer"),
	optColumn("n", 19, "int32", func(r *Row) *Opt[int32] { return &r.N }, "choices asked for"),
	boolColumn("stream", 20, func(r *Row) *Opt[bool] { return &r.Stream }, "whether the answer was to be streamed"),
	floatColumn("temperature", 21, func(r *Row) *Opt[float64] { return &r.Temperature }, "sampling temperature"),
	listColumn("prefix_blocks", 22, "int64", blockItems, func(r *Row) *[]uint64 { return &r.PrefixBlocks }, "id of each prompt block, unsigned, bit for bit; null is unknown, empty is none"),
	listColumn("output_blocks", 23, "int64", blockItems, func(r *Row) *[]uint64 { return &r.OutputBlocks }, "the same of the answer"),
	optColumn("delay_ns", 24, "int64", func(r *Row) *Opt[time.Duration] { return &r.Delay }, "pause before this turn, where a source says it apart from think"),
	extraColumn("extra", 25, func(r *Row) *string { return &r.Extra }, "JSON object of source fields that no column names"),
	optColumn("cached_tokens", 26, "int32", func(r *Row) *Opt[int32] { return &r.CachedTokens }, "prompt tokens served from the prefix cache"),
	optColumn("reasoning_tokens", 27, "int32", func(r *Row) *Opt[int32] { return &r.ReasoningTokens }, "reasoning tokens of the answer"),
	optColumn("media_tokens", 28, "int32", func(r *Row) *Opt[int32] { return &r.MediaTokens }, "image, audio and video tokens of the prompt"),
	optColumn("ttft_ns", 29, "int64", func(r *Row) *Opt[time.Duration] { return &r.TTFT }, "from the send to the first event that carries a token"),
	optColumn("e2e_ns", 30, "int64", func(r *Row) *Opt[time.Duration] { return &r.E2E }, "from the send to the last event that carries a token"),
	stringColumn("ttft_source", 31, func(r *Row) *string { return &r.TTFTSource }, "`content_event`, `engine`, `gateway`, `first_byte`, `header`"),
	listColumn("chunk_ns", 32, "int64", timeItems, func(r *Row) *[]time.Duration { return &r.ChunkTimes }, "from the send to each event that carries a token"),
	listColumn("chunk_tokens", 33, "int32", countItems, func(r *Row) *[]int32 { return &r.ChunkTokens }, "tokens in each of these events"),
	optColumn("status", 34, "int16", func(r *Row) *Opt[int16] { return &r.Status }, "HTTP status"),
	stringColumn("finish_reason", 35, func(r *Row) *string { return &r.FinishReason }, "`stop`, `length`, …"),
	stringColumn("outcome", 36, func(r *Row) *string { return &r.Result }, "`ok`, `client_abort`, `server_error`, `timeout`, `rejected`, `truncated_capture`, `shed`"),
	stringColumn("error", 37, func(r *Row) *string { return &r.Error }, "a short class, never a body"),
	optColumn("abort_ns", 38, "int64", func(r *Row) *Opt[time.Duration] { return &r.Abort }, "from the send to when the client hung up"),
	optColumn("scheduled_ns", 39, "int64", func(r *Row) *Opt[time.Duration] { return &r.Scheduled }, "replays: when the schedule wanted it sent, from the start of the run, like the next ones"),
	optColumn("wake_ns", 40, "int64", func(r *Row) *Opt[time.Duration] { return &r.Wake }, "replays: when the pacer woke for it"),
	optColumn("conn_ns", 41, "int64", func(r *Row) *Opt[time.Duration] { return &r.Conn }, "replays: when it had a connection"),
	boolColumn("conn_reused", 42, func(r *Row) *Opt[bool] { return &r.ConnReused }, "replays: whether that had carried a request before"),
	optColumn("sent_ns", 43, "int64", func(r *Row) *Opt[time.Duration] { return &r.Sent }, "replays: first byte handed to the kernel"),
	optColumn("headers_ns", 44, "int64", func(r *Row) *Opt[time.Duration] { return &r.Headers }, "replays: head of the answer read"),
	optColumn("first_event_ns", 45, "int64", func(r *Row) *Opt[time.Duration] { return &r.FirstEvent }, "replays: first event of any kind"),
	optColumn("close_ns", 46, "int64", func(r *Row) *Opt[time.Duration] { return &r.Close }, "replays: end of the answer"),
	optColumn("served_prompt_tokens", 47, "int32", func(r *Row) *Opt[int32] { return &r.ServedPromptTokens }, "replays: length of the prompt as this run's server counted it"),
	optColumn("served_output_tokens", 48, "int32", func(r *Row) *Opt[int32] { return &r.ServedOutputTokens }, "replays: length of the answer, likewise"),
	optColumn("served_cached_tokens", 49, "int32", func(r *Row) *Opt[int32] { return &r.ServedCachedTokens }, "replays: prompt tokens from this server's prefix cache"),
	hashColumn("prompt_digest", 50, func(r *Row) *Opt[int64] { return &r.PromptDigest }, "replays: hash of the prompt as sent"),
	optColumn("server_queue_ns", 51, "int64", func(r *Row) *Opt[time.Duration] { return &r.ServerQueue }, "the engine's own clock: time in its queue"),
	optColumn("server_prefill_ns", 52, "int64", func(r *Row) *Opt[time.Duration] { return &r.ServerPrefill }, "the engine's own clock: prefill"),
	optColumn("server_ttft_ns", 53, "int64", func(r *Row) *Opt[time.Duration] { return &r.ServerTTFT }, "the engine's own clock: time to first token"),
	optColumn("server_e2e_ns", 54, "int64", func(r *Row) *Opt[time.Duration] { return &r.ServerE2E }, "the engine's own clock: whole request"),
}

var (
	columnsByName = map[string]int{}
	columnsByTag  = map[uint64]*column{}
	schema        *parquet.Schema
)

func init() {
	var fields []parquet.Field
	for i := range columns {
		c := &columns[i]
		columnsByName[c.name] = i
		columnsByTag[c.tag] = c
		fields = append(fields, namedNode{c.node, c.name})
	}
	schema = parquet.NewSchema("trace", root{parquet.Group{}, fields})
}

// ColumnNames returns the names of all columns, in file order.
func ColumnNames() []string {
	names := make([]string, len(columns))
	for i := range columns {
		names[i] = columns[i].name
	}
	return names
}

// A root is a group whose fields stay in the order of the table; those of
// parquet.Group are sorted by name.
type root struct {
	parquet.Group
	fields []parquet.Field
}

func (r root) Fields() []parquet.Field { return r.fields }

func (root) GoType() reflect.Type { return reflect.TypeFor[struct{}]() }

type namedNode struct {
	parquet.Node
	name string
}

func (n namedNode) Name() string { return n.name }

// Value would find the field in a Go value; rows are never written that way.
func (namedNode) Value(reflect.Value) reflect.Value {
	panic("traceformat: columns are written by value")
}

func must(c column) column {
	c.required = true
	c.node = parquet.Required(c.node)
	return c
}

func lacking(c column) column {
	c.mayLack = true
	return c
}

func typeNode(typ string) parquet.Node {
	switch typ {
	case "int16":
		return parquet.Int(16)
	case "int32":
		return parquet.Int(32)
	case "int64":
		return parquet.Int(64)
	case "bool":
		return parquet.Leaf(parquet.BooleanType)
	case "double":
		return parquet.Leaf(parquet.DoubleType)
	default:
		panic("traceformat: no such column type: " + typ)
	}
}

func intColumn[T integer](name string, tag uint64, typ string, at func(*Row) *T, doc string) column {
	n := typeNode(typ)
	if typ == "int64" {
		n = parquet.Encoded(n, &parquet.DeltaBinaryPacked)
	}
	return column{name: name, tag: tag, typ: typ, doc: doc, node: n, field: intField[T]{at: at, wide: typ == "int64"}}
}

func optColumn[T integer](name string, tag uint64, typ string, at func(*Row) *Opt[T], doc string) column {
	return column{name: name, tag: tag, typ: typ, doc: doc, node: parquet.Optional(typeNode(typ)), field: optField[T]{at: at, wide: typ == "int64"}}
}

// hashColumn is an integer whose bits matter and whose size does not: in JSON
// it is a string, since most readers of JSON keep 53 bits of a number.
func hashColumn(name string, tag uint64, at func(*Row) *Opt[int64], doc string) column {
	c := optColumn(name, tag, "int64", at, doc)
	c.field = optField[int64]{at: at, wide: true, quoted: true}
	return c
}

func boolColumn(name string, tag uint64, at func(*Row) *Opt[bool], doc string) column {
	return column{name: name, tag: tag, typ: "bool", doc: doc, node: parquet.Optional(typeNode("bool")), field: boolField{at}}
}

func floatColumn(name string, tag uint64, at func(*Row) *Opt[float64], doc string) column {
	return column{name: name, tag: tag, typ: "double", doc: doc, node: parquet.Optional(typeNode("double")), field: floatField{at}}
}

// stringColumn is a string of few distinct values.
func stringColumn(name string, tag uint64, at func(*Row) *string, doc string) column {
	n := parquet.Encoded(parquet.String(), &parquet.RLEDictionary)
	return column{name: name, tag: tag, typ: "string", doc: doc, node: parquet.Optional(n), field: stringField{at: at, few: true}}
}

// extraColumn is a JSON object, likely another one in each row.
func extraColumn(name string, tag uint64, at func(*Row) *string, doc string) column {
	return column{name: name, tag: tag, typ: "string", doc: doc, node: parquet.Optional(parquet.String()), field: stringField{at: at, object: true}}
}

func listColumn[T item](name string, tag uint64, typ string, form itemForm, at func(*Row) *[]T, doc string) column {
	n := typeNode(typ)
	if form == timeItems {
		n = parquet.Encoded(n, &parquet.DeltaBinaryPacked)
	}
	return column{
		name: name, tag: tag, typ: "list<" + typ + ">", doc: doc,
		node:  parquet.Optional(parquet.List(n)),
		field: listField[T]{at: at, form: form, wide: typ == "int64"},
	}
}
