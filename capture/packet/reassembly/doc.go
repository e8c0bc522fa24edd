// Package reassembly puts TCP segments, as a capture saw them, back into two
// byte streams per connection.
//
// A capture is not an endpoint. It may join late, lose packets that the
// endpoints did receive, see packets twice or out of order, and it must not
// wait for what will never come. So this package, unlike a TCP stack,
//
//   - delivers a segment the moment it is next in its stream, without a copy;
//   - keeps the capture time of every segment and hands it on with the bytes;
//   - declares a gap when the peer acknowledged bytes that were not captured,
//     when a budget is spent, or when the connection is over, and says how many
//     bytes the gap has: a parser that knows its framing can step over it;
//   - starts in mid-connection with the first bytes it sees.
//
// Offsets are 64 bits wide and count from the first byte of a stream (or the
// first one seen), so sequence numbers that wrap at 2^32 are nothing special.
//
// Everything is bounded: out-of-order bytes per connection and in all, the
// connections themselves, and what handlers charge to the [Budget]. When the
// budget is spent, the connections idle for longest go first.
//
// An [Assembler] is used by one goroutine.
package reassembly

// A Dir is one of the two directions of a connection: 0 is from the lower
// endpoint of its [Key], 1 from the higher.
type Dir uint8

// Other is the opposite direction.
func (d Dir) Other() Dir { return 1 - d }

// An Endpoint is an address (IPv4 in its IPv6-mapped form) and a port.
type Endpoint struct {
	Addr [16]byte
	Port uint16
}

// A Key names a connection; A sorts before B.
type Key struct{ A, B Endpoint }

// MakeKey returns the key of a packet from src to dst, and its direction.
// Ports are compared first, since that nearly always decides.
func MakeKey(src, dst *Endpoint) (k Key, d Dir) {
	if src.Port < dst.Port || src.Port == dst.Port && string(src.Addr[:]) <= string(dst.Addr[:]) {
		return Key{*src, *dst}, 0
	}
	return Key{*dst, *src}, 1
}

// TCP flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
)

// A Segment is one TCP segment. Payload is only borrowed.
type Segment struct {
	Time     int64 // capture time, nanoseconds since the epoch
	Src, Dst Endpoint
	Seq, Ack uint32
	Flags    uint8
	ID       uint16 // IPv4 identification, 0 elsewhere: tells a copy from a retransmission
	Payload  []byte
	Missing  int // payload bytes that were sent and that the snap length cut off
}

// A Mark says where and when bytes of a stream were seen.
type Mark struct {
	// Time is the capture time of the segment in nanoseconds, or that of the
	// bytes before it in the stream if that is later: a receiver cannot have
	// read them sooner. It never goes back within a direction.
	Time int64
	// Off is the offset in the stream.
	Off int64
	// Ack is how much of the opposite stream the sender had received when it
	// sent this, as an offset; -1 if unknown.
	Ack int64
}

// A Handler takes what a connection carries, in stream order per direction.
type Handler interface {
	// Data hands over the next bytes: one segment or the rest of one. p is
	// only valid during the call.
	Data(d Dir, at Mark, p []byte)
	// Gap says that the next n bytes were not captured.
	Gap(d Dir, at Mark, n int64)
	// Fin says that direction d sent all it had to send.
	Fin(d Dir, t int64)
	// Close is the last call. t is the time of the last packet.
	Close(t int64, why Closing, by Dir)
}

// A Closing is why a connection is over for us.
type Closing uint8

const (
	Finished Closing = iota // both directions ended with FIN; by sent it first
	Reset                   // by sent RST
	Replaced                // a new connection took the same addresses and ports
	Idle                    // no packet for the idle timeout
	Evicted                 // the memory budget was spent
	EndOfCapture
)

// A Budget is memory shared by the assembler and the handlers. It counts; the
// assembler makes room.
type Budget struct{ Used, Limit int64 }

// Add charges n bytes, or gives them back if n is negative.
func (b *Budget) Add(n int) { b.Used += int64(n) }

// Counters say what became of segments and bytes.
type Counters struct {
	Segments        int64 `json:"segments"`          // all that Add was given
	Duplicates      int64 `json:"duplicates"`        // the same packet captured again
	Retransmissions int64 `json:"retransmissions"`   // brought nothing new
	OutOfOrder      int64 `json:"out_of_order"`      // held until their turn
	Stray           int64 `json:"stray"`             // of no connection known, or after its end, with nothing to deliver
	AfterClose      int64 `json:"after_close"`       // payload after the end
	Connections     int64 `json:"connections"`       // begun
	LateJoins       int64 `json:"late_joins"`        // of those, without their SYN
	ResetByPeer     int64 `json:"resets"`            // ended by RST
	IdleExpired     int64 `json:"idle_expired"`      // ended by the idle timeout
	EvictedConns    int64 `json:"evicted"`           // ended by the memory budget
	Gaps            int64 `json:"gaps"`              // declared
	GapBytes        int64 `json:"gap_bytes"`         // bytes in them
	BudgetGaps      int64 `json:"budget_gaps"`       // of the gaps, those declared to stay within the budget
	TruncatedBytes  int64 `json:"truncated_bytes"`   // of the gap bytes, those a snap length cut off
	DeliveredBytes  int64 `json:"delivered_bytes"`   // handed to handlers
	PeakMemory      int64 `json:"peak_memory_bytes"` // highest use of the budget
}
