package proxylog

import "reprise/capture"

// WaitingRequests are requests of which one line was read and another is to
// come. There are at most maxWaiting; beyond that the oldest is recorded as it
// is.
type waitingRequests struct {
	byID  map[string]*capture.Logged
	order []string // oldest first; may hold ids that are gone
}

func (w *waitingRequests) put(id string, l *capture.Logged, e *Emitter) {
	if w.byID == nil {
		w.byID = map[string]*capture.Logged{}
	}
	if before := w.byID[id]; before != nil {
		e.Record(before)
	} else {
		w.order = append(w.order, id)
	}
	c := *l
	w.byID[id] = &c
	for len(w.byID) > maxWaiting {
		w.oldest(e)
	}
	if len(w.order) > 2*maxWaiting {
		kept := w.order[:0]
		for _, id := range w.order {
			if w.byID[id] != nil {
				kept = append(kept, id)
			}
		}
		w.order = kept
	}
}

// take removes and returns what waits under id, or nil.
func (w *waitingRequests) take(id string) *capture.Logged {
	l := w.byID[id]
	delete(w.byID, id)
	return l
}

func (w *waitingRequests) oldest(e *Emitter) {
	id := w.order[0]
	w.order = w.order[1:]
	if l := w.take(id); l != nil {
		e.Record(l)
	}
}

// flush records all that waits, in the order in which it came.
func (w *waitingRequests) flush(e *Emitter) {
	for len(w.order) > 0 {
		w.oldest(e)
	}
}
