package convert

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reprise/traceformat"
)

type row = traceformat.Row

func request(r traceformat.Request) row { return row{Request: r} }

func checkRows(t *testing.T, got, want []row) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func checkHeader(t *testing.T, got, want *traceformat.Header) {
	t.Helper()
	want.Version = traceformat.Version
	want.Sorted = true
	want.Origin.Program = "import"
	want.Clock.Source = "log"
	if want.Extra == nil {
		want.Extra = map[string]string{}
	}
	if want.Rows.Seen == 0 {
		want.Rows.Seen = want.Rows.Recorded
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
}

func tokens(n int32) traceformat.Opt[int32] { return traceformat.Some(n) }

func id(n int64) traceformat.Opt[int64] { return traceformat.Some(n) }

func TestAzure(t *testing.T) {
	h, rows := readAll(t, "azure", testdata(t, "azure2023.csv"))
	checkHeader(t, h, &traceformat.Header{
		Start:  time.Date(2024, 2, 28, 23, 59, 58, 0, time.UTC),
		Clock:  traceformat.Clock{Tick: 0}, // 100 ns is finer than a tick worth a name
		Origin: traceformat.Origin{Dialect: "azure"},
		Rows:   traceformat.Counts{Recorded: 5},
		Extra:  map[string]string{sourceStyle: "digits7,no-final-newline"},
	})
	checkRows(t, rows, []row{
		request(traceformat.Request{ID: 0, Arrival: 0, PromptTokens: tokens(1500), OutputTokens: tokens(12)}),
		request(traceformat.Request{ID: 1, Arrival: 1_123_456_700, PromptTokens: tokens(88), OutputTokens: tokens(301)}),
		request(traceformat.Request{ID: 2, Arrival: 2_000_000_100, PromptTokens: tokens(4096), OutputTokens: tokens(1)}),
		request(traceformat.Request{ID: 3, Arrival: 2_000_000_100, PromptTokens: tokens(7), OutputTokens: tokens(1000)}),
		request(traceformat.Request{ID: 4, Arrival: 43202500 * time.Millisecond, PromptTokens: tokens(64), OutputTokens: tokens(64)}),
	})

	// Offsets from UTC count; what is spelt unlike the first row is kept.
	_, rows = readAll(t, "azure", testdata(t, "azure2024.csv"))
	checkRows(t, rows[2:], []row{
		request(traceformat.Request{ID: 2, Arrival: 990_070 * time.Microsecond, PromptTokens: tokens(76), OutputTokens: tokens(15)}),
		request(traceformat.Request{
			ID: 3, Arrival: 1_490_070 * time.Microsecond, PromptTokens: tokens(80), OutputTokens: tokens(15),
			Extra: `{"TIMESTAMP":"2024-05-10 02:00:01.500000+02:00"}`,
		}),
		request(traceformat.Request{
			ID: 4, Arrival: 1_490_070 * time.Microsecond, PromptTokens: tokens(1200), OutputTokens: tokens(7),
			Extra: `{"TIMESTAMP":"2024-05-10 00:00:01.5000000","ContextTokens":"1.2e3","GeneratedTokens":"007"}`,
		}),
	})

	_, rows = readAll(t, "azure", testdata(t, "azure2025.csv"))
	if got, want := rows[2].Extra, `{"NumImages":12}`; got != want {
		t.Errorf("extra of the image trace = %s, want %s", got, want)
	}
}

func TestBurstGPT(t *testing.T) {
	_, rows := readAll(t, "burstgpt", testdata(t, "burstgpt1.csv"))
	checkRows(t, rows[1:4], []row{
		{
			Request: traceformat.Request{ID: 1, Model: "GPT-4", Class: "api", PromptTokens: tokens(1200)},
			Outcome: traceformat.Outcome{Result: traceformat.ResultServerError, Error: "no_response"},
		},
		{
			Request: traceformat.Request{ID: 2, Arrival: 2 * time.Second, Model: "ChatGPT", Class: "api", PromptTokens: tokens(16), OutputTokens: tokens(500)},
			Outcome: traceformat.Outcome{Result: traceformat.ResultOK},
		},
		{
			Request: traceformat.Request{
				ID: 3, Arrival: 2500 * time.Millisecond, Model: "GPT-4, turbo", PromptTokens: tokens(16), OutputTokens: tokens(500),
				Extra: `{"Total tokens":"520","Log Type":"Batch log"}`,
			},
			Outcome: traceformat.Outcome{Result: traceformat.ResultOK},
		},
	})

	h, rows := readAll(t, "burstgpt", testdata(t, "burstgpt3.csv"), "lengths", "cumulative")
	checkHeader(t, h, &traceformat.Header{
		Clock:   traceformat.Clock{Tick: time.Second},
		Origin:  traceformat.Origin{Dialect: "burstgpt"},
		Lengths: traceformat.LengthsCumulative,
		Rows:    traceformat.Counts{Recorded: 5},
		Extra:   map[string]string{SourceStart: "1000000000000000", sourceStyle: "sessions,float-time"},
	})
	first, second := rows[0], rows[3]
	if first.Session != second.Session || second.Parent != id(0) || second.Turn != tokens(1) || first.Turn != tokens(0) {
		t.Errorf("turn 2 of a session has session %v, parent %v, turn %v; want %v, 0, 1", second.Session, second.Parent, second.Turn, first.Session)
	}
	if got, want := second.Extra, `{"Session ID":"5f0c1c9e-0000-4000-8000-000000000001"}`; got != want {
		t.Errorf("extra = %s, want %s", got, want)
	}
	if api := rows[4]; api.Session.OK || api.E2E.OK {
		t.Errorf("a row without session and elapsed time has %v and %v", api.Session, api.E2E)
	}
	if got := rows[2].E2E.Or(0); got != 2500*time.Millisecond {
		t.Errorf("elapsed time = %v, want 2.5s", got)
	}
}

func TestMooncake(t *testing.T) {
	h, rows := readAll(t, "mooncake", testdata(t, "mooncake.jsonl"))
	checkHeader(t, h, &traceformat.Header{
		Clock:   traceformat.Clock{Tick: time.Millisecond}, // three stamps prove no tick
		Origin:  traceformat.Origin{Dialect: "mooncake"},
		Blocks:  traceformat.Blocks{Size: 512, Scheme: "sequence", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialKept},
		Lengths: traceformat.LengthsCumulative,
		Rows:    traceformat.Counts{Recorded: 4},
		Extra:   map[string]string{SourceStart: "3000000000"},
	})
	checkRows(t, rows[2:], []row{
		request(traceformat.Request{
			ID: 2, Arrival: 3 * time.Second, PromptTokens: tokens(1), OutputTokens: tokens(1), PrefixBlocks: []uint64{1<<64 - 1},
		}),
		request(traceformat.Request{
			ID: 3, Arrival: 6 * time.Second, PromptTokens: tokens(600), OutputTokens: tokens(20), PrefixBlocks: []uint64{0, 1<<53 + 1},
		}),
	})
}

func TestMooncakeSessions(t *testing.T) {
	in := testdata(t, "mooncake_sessions.jsonl")
	_, err := open(t, "mooncake", in)
	if err == nil || !strings.Contains(err.Error(), "in: line 1: ") || !strings.Contains(err.Error(), "lengths=cumulative or lengths=incremental") {
		t.Errorf("without lengths: %v, want a refusal that names line 1 and the parameter", err)
	}
	h, rows := readAll(t, "mooncake", in, "lengths", "incremental")
	if h.Lengths != traceformat.LengthsIncremental {
		t.Errorf("lengths = %q, want incremental", h.Lengths)
	}
	if got, want := h.Extra[DroppedFields], "extra,text_input"; got != want {
		t.Errorf("dropped fields = %q, want %q", got, want)
	}
	abc, _ := sessionID("abc")
	checkRows(t, rows, []row{
		request(traceformat.Request{
			ID: 0, Session: id(abc), Turn: tokens(0), PromptTokens: tokens(300), OutputTokens: tokens(40), PrefixBlocks: []uint64{1},
			Extra: `{"session_id":"abc","request_id":"r-1","priority":2}`,
		}),
		request(traceformat.Request{
			ID: 1, Arrival: 1500250 * time.Microsecond, Session: id(42), Turn: tokens(0), PromptTokens: tokens(80), OutputTokens: tokens(9),
			Extra: `{"session_id":"42","group_id":"g","is_restart":false}`,
		}),
		// The turn came 2 s after an answer that ended nobody knows when.
		request(traceformat.Request{
			ID: 2, Arrival: 2 * time.Second, Session: id(abc), Parent: id(0), Turn: tokens(1), Delay: traceformat.Some(2 * time.Second),
			PromptTokens: tokens(900), OutputTokens: tokens(12), PrefixBlocks: []uint64{1, 2},
			Extra: `{"session_id":"abc","timestamp":null}`,
		}),
		request(traceformat.Request{ID: 3, Arrival: 4 * time.Second, OutputTokens: tokens(16)}),
		request(traceformat.Request{ID: 4, Arrival: 4 * time.Second, PromptTokens: tokens(10), OutputTokens: tokens(5)}),
		request(traceformat.Request{
			ID: 5, Arrival: 4 * time.Second, PromptTokens: tokens(10), OutputTokens: tokens(5),
			Extra: `{"timestamp":4000.0,"extra":{"temperature":0.5}}`,
		}),
	})
	out, _ := reexport(t, "mooncake", in, "lengths", "incremental")
	want := `{"timestamp":0,"input_length":300,"output_length":40,"hash_ids":[1],"session_id":"abc","request_id":"r-1","priority":2}
{"timestamp":1500.25,"input_length":80,"output_length":9,"session_id":"42","group_id":"g","is_restart":false}
{"input_length":900,"output_length":12,"hash_ids":[1,2],"session_id":"abc","delay":2000}
{"timestamp":4000,"output_length":16}
{"timestamp":4000,"input_length":10,"output_length":5}
{"timestamp":4000.0,"input_length":10,"output_length":5,"extra":{"temperature":0.5}}
`
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("export (-want +got):\n%s", diff)
	}
}

// TestMooncakeBlockSize checks that a file with another block size is refused
// with the size that would fit, and read when told.
func TestMooncakeBlockSize(t *testing.T) {
	in := []byte(`{"timestamp": 0, "input_length": 200, "output_length": 1, "hash_ids": [1, 2, 3, 4]}`)
	_, err := open(t, "mooncake", in)
	if err == nil || !strings.Contains(err.Error(), "block_size=64") {
		t.Errorf("error = %v, want one that suggests block_size=64", err)
	}
	h, _ := readAll(t, "mooncake", in, "block_size", "64")
	if h.Blocks.Size != 64 {
		t.Errorf("block size = %d, want 64", h.Blocks.Size)
	}
}

func TestBailian(t *testing.T) {
	h, rows := readAll(t, "bailian", testdata(t, "bailian.jsonl"))
	checkHeader(t, h, &traceformat.Header{
		Clock:   traceformat.Clock{Tick: time.Millisecond},
		Origin:  traceformat.Origin{Dialect: "bailian"},
		Blocks:  traceformat.Blocks{Size: 16, Scheme: "siphash-2-4-remapped", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialPadded},
		Lengths: traceformat.LengthsCumulative,
		Rows:    traceformat.Counts{Recorded: 8},
		Extra:   map[string]string{sourceStyle: "float-time"},
	})
	type place struct {
		session, parent traceformat.Opt[int64]
		turn            traceformat.Opt[int32]
		arrival         time.Duration
		extra           string
	}
	var got []place
	for _, r := range rows {
		got = append(got, place{r.Session, r.Parent, r.Turn, r.Arrival, r.Extra})
	}
	none := traceformat.Opt[int64]{}
	want := []place{
		{id(0), none, tokens(0), 0, `{"chat_id":0,"parent_chat_id":-1}`},
		{id(7), none, tokens(0), 250 * time.Millisecond, `{"chat_id":7,"parent_chat_id":-1}`},
		{id(0), id(0), tokens(1), 61114 * time.Millisecond, `{"chat_id":3,"parent_chat_id":0}`},
		{id(0), id(2), tokens(2), 61114 * time.Millisecond, `{"chat_id":9,"parent_chat_id":3}`},
		// A parent that is not in the file is taken for the root.
		{id(5), none, tokens(1), 100300 * time.Millisecond, `{"chat_id":11,"parent_chat_id":5,"timestamp":100.30000000000001}`},
		{id(12), none, tokens(0), 100300 * time.Millisecond, `{"chat_id":12,"parent_chat_id":-1,"timestamp":100.3000000004}`},
		{id(13), none, tokens(0), 101 * time.Second, `{"chat_id":13,"parent_chat_id":-1,"type":"t\u00e9xt \"a\"","label":"\u00e9\n","flag":true}`},
		{id(14), none, tokens(0), 101 * time.Second, `{"chat_id":14,"parent_chat_id":-1}`},
	}
	if got, want := rows[6].Class, `téxt "a"`; got != want {
		t.Errorf("class = %q, want %q", got, want)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(place{})); diff != "" {
		t.Errorf("conversations (-want +got):\n%s", diff)
	}
}

func TestVidur(t *testing.T) {
	_, rows := readAll(t, "vidur", testdata(t, "vidur.csv"))
	checkRows(t, rows, []row{
		request(traceformat.Request{
			Session: id(7), Turn: tokens(0), PromptTokens: tokens(3772), OutputTokens: tokens(54), Extra: `{"request_id":"0"}`,
		}),
		request(traceformat.Request{
			ID: 1, Arrival: 125 * time.Millisecond, PromptTokens: tokens(2015), OutputTokens: tokens(156), Extra: `{"request_id":"1"}`,
		}),
		// Nanoseconds do not hold the last digits; the text is kept.
		request(traceformat.Request{
			ID: 2, Arrival: 2_828_480_711, Session: id(7), Parent: id(0), Turn: tokens(1),
			PromptTokens: tokens(64), OutputTokens: tokens(9), Extra: `{"arrived_at":"2.828480710548229","request_id":"2"}`,
		}),
	})
}

func TestWeka(t *testing.T) {
	h, rows := readAll(t, "weka", testdata(t, "weka.json"))
	checkHeader(t, h, &traceformat.Header{
		Clock:   traceformat.Clock{Tick: time.Millisecond},
		Origin:  traceformat.Origin{Dialect: "weka"},
		Blocks:  traceformat.Blocks{Size: 64, Scheme: "session-mix64", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialDropped},
		Lengths: traceformat.LengthsCumulative,
		Rows:    traceformat.Counts{Recorded: 5},
	})
	a, _ := sessionID("sess-a")
	agent, _ := sessionID("sess-a/agent_001")
	b, _ := sessionID("sess-b")
	type place struct {
		id      int64
		at      time.Duration
		session int64
		parent  traceformat.Opt[int64]
		turn    int32
		blocks  []uint64
		stop    string
	}
	var got []place
	for _, r := range rows {
		var blocks []uint64
		session := "sess-a"
		if r.Session.V == b {
			session = "sess-b"
		}
		for _, id := range r.PrefixBlocks {
			blocks = append(blocks, LocalBlockID(session, id))
		}
		got = append(got, place{r.ID, r.Arrival, r.Session.V, r.Parent, r.Turn.V, blocks, r.FinishReason})
	}
	none := traceformat.Opt[int64]{}
	want := []place{
		{0, 0, a, none, 0, []uint64{1, 2}, "tool_calls"},
		{4, 0, b, none, 0, []uint64{1}, "length"},
		{1, 5 * time.Second, agent, none, 0, []uint64{9}, "tool_calls"}, // times inside count from the start of the agent
		{3, 7250 * time.Millisecond, a, id(0), 1, []uint64{1, 2, 3}, ""},
		{2, 9500 * time.Millisecond, agent, id(1), 1, []uint64{9, 10, 11}, "stop"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(place{})); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	if rows[0].PrefixBlocks[0] == rows[1].PrefixBlocks[0] {
		t.Error("block 1 of two sessions has one id, want ids that tell the sessions apart")
	}
	if rows[0].PrefixBlocks[1] != rows[3].PrefixBlocks[1] {
		t.Error("block 2 of a session has two ids")
	}
	if got, want := rows[0].Outcome, (traceformat.Outcome{
		TTFT: traceformat.Some(1430 * time.Millisecond), E2E: traceformat.Some(3100 * time.Millisecond),
		FinishReason: "tool_calls", Result: traceformat.ResultOK,
	}); !cmp.Equal(got, want) {
		t.Errorf("outcome = %+v, want %+v", got, want)
	}
	if got, want := rows[3].Think, traceformat.Some(4150*time.Millisecond); got != want {
		t.Errorf("think = %v, want %v", got, want)
	}
	if got, want := rows[2].Extra, `{"session":"sess-a/agent_001","subagent":{"t":5.0,"agent_id":"agent_001","subagent_type":"Explore",`+
		`"duration_ms":9000,"total_tokens":300,"tool_use_count":2,"status":"completed","models":["m-small"],"tool_tokens":5,"system_tokens":6},"spawned_after":0}`; got != want {
		t.Errorf("extra of a subagent's first row = %s, want %s", got, want)
	}

	_, rows = readAll(t, "weka", testdata(t, "weka.json"), "sessions", "1m")
	if last := rows[len(rows)-1]; last.Session.V != b || last.Arrival != time.Minute {
		t.Errorf("second session spaced by a minute starts at %v", last.Arrival)
	}
}

func TestDynamo(t *testing.T) {
	h, rows := readAll(t, "dynamo", testdata(t, "dynamo.jsonl"))
	checkHeader(t, h, &traceformat.Header{
		Start:   time.UnixMilli(1750000001000).UTC(),
		Clock:   traceformat.Clock{Tick: time.Millisecond},
		Origin:  traceformat.Origin{Dialect: "dynamo", Vantage: "proxy"},
		Blocks:  traceformat.Blocks{Size: 64, Scheme: "xxh3-chain", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialKept},
		Lengths: traceformat.LengthsCumulative,
		Rows:    traceformat.Counts{Seen: 4, Recorded: 2, Dropped: map[string]int64{"not_a_request": 2}},
	})
	run, _ := sessionID("run-1")
	checkRows(t, rows, []row{
		{
			Request: traceformat.Request{
				ID: 1, Model: "m", PromptTokens: tokens(64), OutputTokens: tokens(40),
				PromptTokensSource: "engine", OutputTokensSource: "engine",
				PrefixBlocks: []uint64{1<<64 - 1}, Extra: `{"request_id":"req-1"}`,
			},
			Outcome: traceformat.Outcome{E2E: traceformat.Some(1500 * time.Millisecond), FinishReason: "cancelled", Result: traceformat.ResultClientAbort},
		},
		{
			Request: traceformat.Request{
				ID: 0, Arrival: time.Second, Session: id(run), Model: "m", PromptTokens: tokens(130), OutputTokens: tokens(4),
				PromptTokensSource: "engine", OutputTokensSource: "engine",
				PrefixBlocks: []uint64{1<<64 - 1, 1<<53 + 1, 3},
				Extra: `{"request_id":"req-2","agent_context.session_id":"run-1","agent_context.parent_session_id":"run-0",` +
					`"avg_itl_ms":26.3,"kv_hit_rate":0.49,"queue_depth":3,"worker":{"prefill_worker_id":1,"decode_worker_id":2}}`,
			},
			Outcome: traceformat.Outcome{
				CachedTokens: tokens(64), TTFT: traceformat.Some(21 * time.Millisecond), TTFTSource: "gateway",
				E2E:         traceformat.Some(100 * time.Millisecond),
				ServerQueue: traceformat.Some(500 * time.Microsecond), ServerPrefill: traceformat.Some(20250 * time.Microsecond),
				FinishReason: "stop", Result: traceformat.ResultOK,
			},
		},
	})
}

// TestNoTextIsKept looks for the prompts and answers of the test files in all
// that importers make of them.
func TestNoTextIsKept(t *testing.T) {
	for file, format := range map[string]string{
		"mooncake_sessions.jsonl": "mooncake", "dynamo.jsonl": "dynamo", "weka.json": "weka",
	} {
		h, rows := readAll(t, format, testdata(t, file), "lengths", "incremental")
		all := fmt.Sprintf("%+v %+v", h, rows)
		for _, secret := range []string{"the text of", "never stored", "user"} {
			if strings.Contains(all, secret) {
				t.Errorf("%s: %q came through", file, secret)
			}
		}
	}
}

// heads are the beginnings of files by format, as Open hands them to Detect.
func heads(t *testing.T) map[string]string {
	files := map[string]string{}
	for _, f := range []string{
		"azure2023.csv", "azure2024.csv", "azure2025.csv", "burstgpt1.csv", "burstgpt3.csv",
		"mooncake.jsonl", "mooncake_sessions.jsonl", "bailian.jsonl", "vidur.csv", "weka.json", "dynamo.jsonl",
	} {
		name := strings.TrimRight(strings.SplitN(f, ".", 2)[0], "0123456789")
		files[f] = strings.TrimSuffix(name, "_sessions")
	}
	return files
}

// TestDetect holds every format against every file: the one it is, the whole
// file and a head that ends in the middle, and no other.
func TestDetect(t *testing.T) {
	for file, want := range heads(t) {
		in := testdata(t, file)
		for _, head := range [][]byte{in, in[:len(in)*2/3], append(slices.Clone(utf8BOM), in...)} {
			var got []string
			for _, f := range textFormats {
				if f.Detect(head) {
					got = append(got, f.Name)
				}
			}
			if !slices.Equal(got, []string{want}) {
				t.Errorf("%s (%d bytes) is detected as %v, want [%s]", file, len(head), got, want)
			}
		}
	}
	for _, other := range []string{
		"", "PAR1\x15\x04", "{", "{}", "[1,2]", "hello, world\n", "a,b,c\n1,2,3\n", `{"foo":1}`, strings.Repeat("{", 70000),
		`{"timestamp":1,"requests":[{"prompt":"x","prompt_length":1,"output_length":2}]}`, // AIBrix
		`{"schema":"dynamo.agentic_mooncake","version":2,"block_size":64}`,
		`{"schema":"dynamo.request.trace.v2","event_type":"request_end"}`,
		"0,1.5,1.0,Gamma,1,1\n", // ServeGen
	} {
		for _, f := range textFormats {
			if f.Detect([]byte(other)) {
				t.Errorf("%.60q is detected as %s, want nothing", other, f.Name)
			}
		}
	}
	for _, f := range textFormats {
		if f.DetectParquet != nil {
			t.Errorf("%s reads text and claims Parquet files", f.Name)
		}
	}
}

// TestBadInput lists what must not pass, with the error that says where and why.
func TestBadInput(t *testing.T) {
	const azureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
	const burstHeader = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
	moon := func(s string) string {
		return `{"timestamp": 5, "input_length": 1, "output_length": 1, "hash_ids": [1]}` + "\n" + s
	}
	chat := func(s string) string {
		return `{"chat_id": 1, "parent_chat_id": -1, "timestamp": 5, "input_length": 1, "output_length": 1, "turn": 1, "hash_ids": [1]}` + "\n" + s
	}
	session := func(s string) string {
		return "{\"id\":\"a\",\"block_size\":64,\"hash_id_scope\":\"local\",\"requests\":[" + s + "]}"
	}
	event := func(s string) string {
		return `{"schema":"dynamo.request.trace.v1","event_type":"request_end","event_time_unix_ms":5,"request":{` + s + `}}`
	}
	tests := []struct {
		name, format, in, want string
		is                     error
	}{
		{"empty", "azure", "", "in: the file is empty", traceformat.ErrEmpty},
		{"empty JSON Lines", "mooncake", "", "in: the file is empty", traceformat.ErrEmpty},
		{"empty session file", "weka", " \n", "in: the file is empty", traceformat.ErrEmpty},
		{"blank lines only", "bailian", "\n\n", "in: the file is empty", traceformat.ErrEmpty},
		{"other header", "azure", "TIMESTAMP,A,B\n1,2,3\n", "in: line 1: header is", traceformat.ErrFormat},
		{"columns in another order", "burstgpt", "Model,Timestamp\n", "in: line 1: header is", traceformat.ErrFormat},
		{"cut line", "azure", azureHeader + "2024-01-01 00:00:00.0000000,5,5\n2024-01-01 00:00:01.00", "in: line 3: the file is cut short: 1 fields, want the 3 of the header", traceformat.ErrTruncated},
		{"cut object", "mooncake", moon(`{"timestamp": 6, "input_le`), "in: line 2: the file is cut short: not JSON", traceformat.ErrTruncated},
		{"cut session", "weka", `{"id":"a","block_size":64,"hash_id_scope":"local","requests":[{"t":0`, "in: line 1: the file is cut short", traceformat.ErrTruncated},
		{"missing field in the middle", "azure", azureHeader + "2024-01-01 00:00:00.0000000,5\n2024-01-01 00:00:01.0000000,5,5\n", "in: line 2: 2 fields, want the 3 of the header", nil},
		{"time backwards", "azure", azureHeader + "2024-01-01 00:00:01.0000000,5,5\n2024-01-01 00:00:00.0000000,5,5\n", "in: line 3: arrival goes backwards", traceformat.ErrUnsorted},
		{"time backwards in JSON", "mooncake", moon(`{"timestamp": 4, "input_length": 1, "output_length": 1, "hash_ids": [1]}`), "in: line 2: arrival goes backwards", traceformat.ErrUnsorted},
		{"not a date", "azure", azureHeader + "2023-02-29 00:00:00.0000000,5,5\n", "in: line 2: TIMESTAMP \"2023-02-29 00:00:00.0000000\" is not a time like", nil},
		{"ten fractional digits", "azure", azureHeader + "2023-02-28 00:00:00.0000000000,5,5\n", "is not a time like", nil},
		{"year 9999", "azure", azureHeader + "9999-01-01 00:00:00,5,5\n", "is out of range", nil},
		{"negative length", "azure", azureHeader + "2024-01-01 00:00:00.0000000,-5,5\n", "in: line 2: ContextTokens \"-5\" is negative", nil},
		{"absurd length", "azure", azureHeader + "2024-01-01 00:00:00.0000000,5,99999999999\n", "in: line 2: GeneratedTokens \"99999999999\" is more than 1073741824 tokens", nil},
		{"length beyond int64", "burstgpt", burstHeader + "1,m,1e99,5,5,API log\n", "in: line 2: Request tokens \"1e99\" is out of range", nil},
		{"half a token", "burstgpt", burstHeader + "1,m,1.5,5,5,API log\n", "in: line 2: Request tokens \"1.5\" is not a whole number", nil},
		{"NaN", "burstgpt", burstHeader + "NaN,m,1,5,5,API log\n", "in: line 2: Timestamp \"NaN\" is not a number", nil},
		{"negative time", "burstgpt", burstHeader + "-1,m,1,5,5,API log\n", "in: line 2: Timestamp \"-1\" is negative", nil},
		{"NUL byte", "azure", azureHeader + "2024-01-01 00:00:00.0000000,5\x00,5\n", "in: line 2: NUL byte", nil},
		{"not UTF-8", "burstgpt", burstHeader + "1,\xff,1,5,5,API log\n", "in: line 2: the line is not UTF-8", nil},
		{"open quote", "burstgpt", burstHeader + "1,\"m,1,5,5,API log\n", "in: line 2: quote is not closed", nil},
		{"huge line", "mooncake", moon(`{"a":"` + strings.Repeat("x", maxLine) + `"}`), "in: line 2: line is longer than 16 MiB", nil},
		{"huge session", "weka", `{"id":"` + strings.Repeat("x", maxSession), "in: line 1: session is longer than 64 MiB", nil},
		{"not an object", "mooncake", moon("[1]\n"), "in: line 2: not a JSON object", nil},
		{"two objects on a line", "mooncake", moon("{} {}\n"), "in: line 2: not JSON", nil},
		{"key twice", "mooncake", moon(`{"timestamp": 5, "timestamp": 6}` + "\n"), `in: line 2: key "timestamp" comes twice`, nil},
		{"many keys", "mooncake", moon("{" + strings.Repeat(`"a":1,`, 300) + `"b":1}` + "\n"), "in: line 2: more than 256 fields", nil},
		{"no time", "mooncake", moon(`{"input_length": 1, "output_length": 1}` + "\n"), "in: line 2: the row has neither a timestamp nor a session", nil},
		{"late session", "mooncake", moon(`{"timestamp": 6, "session_id": "a", "input_length": 1}` + "\n"), "in: line 2: the row has a session or a delay", nil},
		{"too few ids", "mooncake", moon(`{"timestamp": 6, "input_length": 1025, "output_length": 1, "hash_ids": [1, 2]}` + "\n"), "in: line 2: 2 block ids for 1025 tokens, want 3 blocks of 512", nil},
		{"negative id", "mooncake", moon(`{"timestamp": 6, "input_length": 1, "output_length": 1, "hash_ids": [-1]}` + "\n"), `in: line 2: hash_ids holds "-1"`, nil},
		{"id beyond 64 bits", "mooncake", moon(`{"timestamp": 6, "input_length": 1, "output_length": 1, "hash_ids": [18446744073709551616]}` + "\n"), "hash_ids holds", nil},
		{"ids that are no list", "mooncake", moon(`{"timestamp": 6, "input_length": 1, "output_length": 1, "hash_ids": 5}` + "\n"), "hash_ids is not an array", nil},
		{"string for a number", "mooncake", moon(`{"timestamp": "6", "input_length": 1, "output_length": 1, "hash_ids": [1]}` + "\n"), `timestamp "6" is not a number`, nil},
		{"wrong parameter", "mooncake", moon(""), "", nil},
		{"no chat id", "bailian", chat(`{"timestamp": 6, "input_length": 1, "output_length": 1}` + "\n"), "in: line 2: chat_id", nil},
		{"no length", "bailian", chat(`{"chat_id": 2, "timestamp": 6, "input_length": 1}` + "\n"), "in: line 2: input_length or output_length is missing", nil},
		{"turn 0", "bailian", chat(`{"chat_id": 2, "timestamp": 6, "input_length": 1, "output_length": 1, "turn": 0}` + "\n"), "in: line 2: turn 0 is not a number from 1", nil},
		{"no timestamp", "bailian", chat(`{"chat_id": 2, "input_length": 1, "output_length": 1}` + "\n"), "in: line 2: timestamp  is not a number", nil},
		{"lengths without times", "vidur", "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n1,1,2,1.0\n", "in: line 1: no column arrived_at: the file has lengths and no times", nil},
		{"column twice", "vidur", "arrived_at,num_prefill_tokens,num_decode_tokens,a,a\n", "in: line 1: column \"a\" comes twice", nil},
		{"session without an id", "weka", `{"block_size":64,"hash_id_scope":"local","requests":[]}`, "in: line 1: the session has no id", nil},
		{"unknown scope", "weka", `{"id":"a","block_size":64,"hash_id_scope":"x","requests":[]}`, `in: line 1: session "a": hash_id_scope is "x"`, nil},
		{"unknown type", "weka", session(`{"t":0,"type":"z"}`), `in: line 1: session "a": request 0 of "a": type is "z"`, nil},
		{"ids of a kept last block", "weka", session(`{"t":0,"type":"n","in":65,"out":1,"hash_ids":[1,2]}`), "2 block ids for 65 tokens, want 1 whole blocks of 64", nil},
		{"two block sizes", "weka", session("") + "\n" + strings.Replace(session(""), "64", "32", 1), `in: line 2: session "a": blocks of 32 tokens`, nil},
		{"endless nesting", "weka", session(strings.Repeat(`{"t":0,"type":"subagent","agent_id":"x","requests":[`, 10) + strings.Repeat("]}", 10)), "nested deeper than 8", nil},
		{"syntax error on line 2", "weka", "{\"id\":\"a\",\n\"block_size\":;}", "in: line 2: not JSON", nil},
		{"text before a session", "weka", "x{}", "in: line 1: 'x' where a session has to start", nil},
		{"other schema", "dynamo", `{"schema":"dynamo.request.trace.v2"}`, "in: line 1: schema is", traceformat.ErrFormat},
		{"unknown event", "dynamo", `{"schema":"dynamo.request.trace.v1","event_type":"x"}`, `in: line 1: event_type is "x"`, nil},
		{"no arrival", "dynamo", event(`"output_tokens":1`), "when was it sent?", nil},
		{"missing hashes", "dynamo", event(`"request_received_ms":1,"replay":{"trace_block_size":2,"input_length":3,"input_sequence_hashes":[1]}`), "1 input_sequence_hashes for 3 tokens, want 2 blocks of 2", nil},
		{"block size 0", "dynamo", event(`"request_received_ms":1,"replay":{"trace_block_size":0,"input_length":3,"input_sequence_hashes":[1]}`), "trace_block_size 0 is not a number of tokens", nil},
		{"block size changes", "dynamo", event(`"request_received_ms":1,"replay":{"trace_block_size":2,"input_length":1,"input_sequence_hashes":[1]}`) + "\n" +
			event(`"request_received_ms":1,"replay":{"trace_block_size":4,"input_length":1,"input_sequence_hashes":[1]}`), "in: line 2: trace_block_size is 4 after 2", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "wrong parameter" {
				for _, p := range [][]string{{"lengths", "both"}, {"seed", "-1"}, {"block_size", "0"}} {
					if _, err := open(t, tt.format, []byte(tt.in), p...); err == nil || !strings.Contains(err.Error(), p[0]+" is "+fmt.Sprintf("%q", p[1])) {
						t.Errorf("%v: error = %v, want one that names it", p, err)
					}
				}
				return
			}
			err := readError(t, tt.format, []byte(tt.in))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error = %v, want %q in it", err, tt.want)
			}
			if _, ok := errors.AsType[*traceformat.RowError](err); !ok {
				t.Errorf("error is a %T, want a *traceformat.RowError", err)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
		})
	}
}

// readError returns the error that ends reading in.
func readError(t testing.TB, format string, in []byte, params ...string) error {
	r, err := open(t, format, in, params...)
	if err != nil {
		return err
	}
	for _, err := range r.All() {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestRowsBeforeDamage checks that a late error does not take the rows before it
// away.
func TestRowsBeforeDamage(t *testing.T) {
	var in bytes.Buffer
	in.WriteString("TIMESTAMP,ContextTokens,GeneratedTokens\n")
	for i := range lookahead + 5 {
		fmt.Fprintf(&in, "%s,1,1\n", formatAzureTime(int64(i)*1e9, nil))
	}
	for _, tail := range []string{"x,1,1\n", ""} {
		for _, n := range []int{3, lookahead + 5} {
			lines := strings.SplitAfter(in.String(), "\n")
			data := strings.Join(lines[:n+1], "") + tail
			r, err := open(t, "azure", []byte(data), "dequantise", "yes")
			if err != nil {
				t.Fatal(err)
			}
			rows, failed := 0, false
			for row, err := range r.All() {
				if err != nil {
					failed = true
					if want := fmt.Sprintf("in: line %d: ", n+2); !strings.HasPrefix(err.Error(), want) {
						t.Errorf("error = %v, want %q before it", err, want)
					}
					continue
				}
				if row.ID != int64(rows) {
					t.Fatalf("row %d has id %d", rows, row.ID)
				}
				rows++
			}
			if rows != n || failed != (tail != "") {
				t.Errorf("%d rows and error %t, want %d and %t", rows, failed, n, tail != "")
			}
		}
	}
}

// TestTicks checks what the importers find out about the clocks of the public
// traces.
func TestTicks(t *testing.T) {
	for _, tt := range []struct {
		format string
		path   []string
		tick   time.Duration
		rows   int64
	}{
		{"mooncake", []string{"mooncake", "conversation_trace.jsonl"}, 3 * time.Second, 12031},
		{"azure", []string{"azure-llm-2023", "AzureLLMInferenceTrace_conv.csv"}, time.Microsecond, 19366},
		{"azure", []string{"azure-llm-2023", "AzureLLMInferenceTrace_code.csv"}, time.Microsecond, 8819},
	} {
		r, err := open(t, tt.format, shared(t, tt.path...))
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Header().Clock.Tick; got != tt.tick {
			t.Errorf("%s: tick is %v when opened, want %v", tt.path[1], got, tt.tick)
		}
		for range r.All() {
		}
		if h := r.Header(); h.Clock.Tick != tt.tick || h.Rows.Recorded != tt.rows {
			t.Errorf("%s: tick %v and %d rows at the end, want %v and %d", tt.path[1], h.Clock.Tick, h.Rows.Recorded, tt.tick, tt.rows)
		}
	}
}

// TestDequantise checks that rows are spread over their tick, in order, the
// same each time, and uniformly.
func TestDequantise(t *testing.T) {
	in := shared(t, "mooncake", "conversation_trace.jsonl")
	_, plain := readAll(t, "mooncake", in)
	h, rows := readAll(t, "mooncake", in, "dequantise", "yes")
	if got, want := h.Extra[TickJitter], "3000000"; got != want {
		t.Errorf("jitter = %q, want %q", got, want)
	}
	if h.Clock.Dequantised != "uniform" || h.Clock.Tick != 3*time.Second {
		t.Errorf("clock = %+v, want 3s, uniform", h.Clock)
	}
	var offsets []float64
	for i := range rows {
		if i > 0 && rows[i].Arrival < rows[i-1].Arrival {
			t.Fatalf("row %d overtakes the one before", i)
		}
		off := rows[i].Arrival - plain[i].Arrival.Round(3*time.Second)
		if rows[i].ID != plain[i].ID || off < 0 || off >= 3*time.Second {
			t.Fatalf("row %d moved by %v, want less than its tick", i, off)
		}
		offsets = append(offsets, off.Seconds()/3)
	}
	// Kolmogorov-Smirnov against the uniform distribution: the 0.1 % critical
	// value for n draws is 1.95/sqrt(n).
	slices.Sort(offsets)
	ks := 0.0
	for i, x := range offsets {
		ks = max(ks, float64(i+1)/float64(len(offsets))-x, x-float64(i)/float64(len(offsets)))
	}
	if limit := 1.95 / 109.7; ks > limit { // sqrt(12031) = 109.7
		t.Errorf("offsets in the tick are at a distance of %.4f from uniform, want at most %.4f", ks, limit)
	}
	_, again := readAll(t, "mooncake", in, "dequantise", "yes", "seed", "1")
	if diff := cmp.Diff(rows, again); diff != "" {
		t.Error("the default seed and seed 1 differ")
	}
	_, other := readAll(t, "mooncake", in, "dequantise", "yes", "seed", "2")
	if rows[0].Arrival == other[0].Arrival {
		t.Error("seeds 1 and 2 give one arrival")
	}
}

// TestDequantiseOffTick checks that a stamp off the tick of the rows that were
// looked at is refused rather than moved past its neighbours.
func TestDequantiseOffTick(t *testing.T) {
	var in bytes.Buffer
	for i := range lookahead + 1 {
		fmt.Fprintf(&in, `{"timestamp": %d, "input_length": 1, "output_length": 1}`+"\n", 3000*i)
	}
	fmt.Fprintf(&in, `{"timestamp": %d, "input_length": 1, "output_length": 1}`+"\n", 3000*lookahead+1000)
	err := readError(t, "mooncake", in.Bytes(), "dequantise", "yes")
	if want := fmt.Sprintf("in: line %d: stamp is", lookahead+2); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error = %v, want %q in it", err, want)
	}
	// Without dequantising the header tells the truth in the end.
	h, _ := readAll(t, "mooncake", in.Bytes())
	if h.Clock.Tick != time.Second {
		t.Errorf("tick = %v, want 1s", h.Clock.Tick)
	}
}

func TestParseDecimal(t *testing.T) {
	tests := []struct {
		in    string
		scale int
		want  int64
		exact bool
		err   error
	}{
		{"0", 9, 0, true, nil},
		{"-0.0", 9, 0, true, nil},
		{"0.1", 9, 100_000_000, true, nil},
		{"61.114", 9, 61_114_000_000, true, nil},
		{"1.5e-05", 9, 15_000, true, nil},
		{"1.E3", 0, 1000, true, nil},
		{".5", 1, 5, true, nil},
		{"0.0000000005", 9, 0, false, nil}, // half to even
		{"0.0000000015", 9, 2, false, nil}, // half to even
		{"0.00000000051", 9, 1, false, nil},
		{"1e-30", 9, 0, false, nil},
		{"0e300", 9, 0, true, nil},
		{"4611686018427387904", 0, 1 << 62, true, nil},
		{"4611686018427387905", 0, 0, false, errTooLarge},
		{"1e300", 9, 0, false, errTooLarge},
		{"-1", 0, 0, false, errNegative},
		{"-1e-30", 0, 0, false, errNegative},
		{"", 0, 0, false, errNumber},
		{".", 0, 0, false, errNumber},
		{"e5", 0, 0, false, errNumber},
		{"1e", 0, 0, false, errNumber},
		{"1e999999", 0, 0, false, errNumber},
		{"0x10", 0, 0, false, errNumber},
		{"1_000", 0, 0, false, errNumber},
		{" 1", 0, 0, false, errNumber},
		{"Infinity", 0, 0, false, errNumber},
	}
	for _, tt := range tests {
		got, exact, err := parseDecimal([]byte(tt.in), tt.scale)
		if got != tt.want || exact != tt.exact || !errors.Is(err, tt.err) {
			t.Errorf("parseDecimal(%q, %d) = %d, %t, %v; want %d, %t, %v", tt.in, tt.scale, got, exact, err, tt.want, tt.exact, tt.err)
		}
	}
}

// TestDecimalsAgainstRationals compares random decimals with exact arithmetic,
// and reads back what is written.
func TestDecimalsAgainstRationals(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for range 20_000 {
		whole, frac := rng.Int64N(1<<uint(rng.IntN(30))+1), rng.Int64N(1<<uint(rng.IntN(50))+1)
		text := fmt.Sprintf("%d.%0*d", whole, 1+rng.IntN(16), frac)
		if rng.IntN(2) == 0 {
			text += fmt.Sprintf("e%d", rng.IntN(9)-6)
		}
		want, ok := new(big.Rat).SetString(text)
		if !ok {
			t.Fatal(text)
		}
		want.Mul(want, big.NewRat(1e9, 1))
		got, exact, err := parseDecimal([]byte(text), seconds)
		if err != nil {
			if new(big.Rat).SetInt64(maxStamp).Cmp(want) > 0 {
				t.Fatalf("parseDecimal(%q): %v", text, err)
			}
			continue
		}
		diff := new(big.Rat).Sub(want, new(big.Rat).SetInt64(got))
		if diff.Abs(diff).Cmp(big.NewRat(1, 2)) > 0 || exact != (diff.Sign() == 0) {
			t.Fatalf("parseDecimal(%q) = %d, exact %t: off by %s", text, got, exact, diff)
		}
		for _, out := range []string{formatDecimal(got, seconds)} {
			if back, exact, err := parseDecimal([]byte(out), seconds); back != got || !exact || err != nil {
				t.Fatalf("%d is written %q and read as %d, %t, %v", got, out, back, exact, err)
			}
		}
	}
}

// TestFormatFloat holds the spelling against what Python prints.
func TestFormatFloat(t *testing.T) {
	for ns, want := range map[int64]string{
		0: "0.0", 1: "1e-09", 15_000: "1.5e-05", 100_000: "0.0001", 61_114_000_000: "61.114",
		5_000_000_000: "5.0", 28_943_983_000_000_000: "28943983.0",
	} {
		if got := formatFloat(ns, seconds); got != want {
			t.Errorf("formatFloat(%d) = %q, want %q", ns, got, want)
		}
	}
}

func TestLocalBlockID(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		id := rng.Uint64()
		if got := unmix64(mix64(id)); got != id {
			t.Fatalf("unmix64(mix64(%d)) = %d", id, got)
		}
	}
}

// TestPublicSessions reads all public kv-cache-tester sessions as one trace.
func TestPublicSessions(t *testing.T) {
	files, err := os.ReadDir(filepath.Join(sharedDir(), "kv-cache-tester"))
	if err != nil {
		t.Skipf("public traces are not here (%v): set REPRISE_SHARED to their folder", err)
	}
	var all bytes.Buffer
	n := 0
	for _, f := range files {
		if filepath.Ext(f.Name()) == ".json" {
			all.Write(shared(t, "kv-cache-tester", f.Name()))
			n++
		}
	}
	h, rows := readAll(t, "weka", all.Bytes())
	sessions := map[int64]bool{}
	for _, r := range rows {
		sessions[r.Session.V] = true
	}
	// 985 + 260 requests of the sessions themselves, 122 of 12 subagents.
	if len(rows) != 1367 || len(sessions) != n+12 || h.Rows.Recorded != 1367 {
		t.Errorf("%d rows in %d conversations, want 1367 in %d", len(rows), len(sessions), n+12)
	}
}
