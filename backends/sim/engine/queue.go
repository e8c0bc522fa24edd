package engine

import "slices"

// A queue holds the waiting requests in the order of admission. Preempted
// requests come back to the head by themselves: they arrived before all others.
type queue struct {
	list     []*Request // from head on
	head     int
	priority bool
}

func (q *queue) less(a, b *Request) bool {
	if q.priority && a.Priority != b.Priority {
		return a.Priority < b.Priority
	}
	return a.seq < b.seq
}

func (q *queue) len() int        { return len(q.list) - q.head }
func (q *queue) first() *Request { return q.list[q.head] }

func (q *queue) push(r *Request) {
	n := q.len()
	switch {
	case n == 0 || q.less(q.list[len(q.list)-1], r):
		q.list = append(q.list, r)
	case q.head > 0 && q.less(r, q.first()):
		q.head--
		q.list[q.head] = r
	default:
		at, _ := slices.BinarySearchFunc(q.list[q.head:], r, func(a, b *Request) int {
			if q.less(a, b) {
				return -1
			}
			return 1
		})
		q.list = slices.Insert(q.list, q.head+at, r)
	}
}

func (q *queue) pop() {
	q.list[q.head] = nil
	q.head++
	// Room at the front is kept for what comes back, but not without bound.
	if q.head > 1024 && q.head > len(q.list)/2 {
		n := copy(q.list[512:], q.list[q.head:])
		clear(q.list[512+n:])
		q.list, q.head = q.list[:512+n], 512
	}
}

func (q *queue) remove(r *Request) {
	if i := slices.Index(q.list[q.head:], r); i >= 0 {
		q.list = slices.Delete(q.list, q.head+i, q.head+i+1)
	}
}
