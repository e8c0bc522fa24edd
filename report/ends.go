package report

import (
	"container/heap"
	"time"

	"reprise/internal/metrics"
	"reprise/traceformat"
)

// Bounds of what waits in ends: requests in flight at a time, and their events.
const (
	maxWaitingRows   = 1 << 15
	maxWaitingEvents = 4 << 20
)

// ends hands rows, which come in the order of their arrival, to a latency log
// in the order of their ends, as the run itself would have. It holds those that
// were in flight at a time. Beyond its bounds a row goes early, and into the
// interval that is open.
type ends struct {
	log    *metrics.LatencyLog
	rows   endHeap
	events int
}

type ending struct {
	at  time.Duration
	row *traceformat.Row
}

type endHeap []ending

func (h endHeap) Len() int           { return len(h) }
func (h endHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h endHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *endHeap) Push(x any)        { *h = append(*h, x.(ending)) }
func (h *endHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = ending{}
	*h = old[:len(old)-1]
	return x
}

func (e *ends) add(row *traceformat.Row) error {
	for len(e.rows) > 0 && (e.rows[0].at < row.Arrival || len(e.rows) >= maxWaitingRows || e.events >= maxWaitingEvents) {
		if err := e.pop(); err != nil {
			return err
		}
	}
	r := metrics.Measure(row)
	heap.Push(&e.rows, ending{r.End.Or(r.Zero), row.Clone()})
	e.events += len(row.ChunkTimes)
	return nil
}

func (e *ends) pop() error {
	x := heap.Pop(&e.rows).(ending)
	e.events -= len(x.row.ChunkTimes)
	return e.log.Add(x.row)
}

// finish hands on what still waits.
func (e *ends) finish() error {
	for len(e.rows) > 0 {
		if err := e.pop(); err != nil {
			return err
		}
	}
	return nil
}
