package wire

import (
	"math/bits"
	"sync"
	"time"
)

// A wheel holds the deadlines of a shard: arming and disarming one costs the
// same however many there are, and none has a timer of the runtime.
// Deadlines are met up to two ticks late, and never early.
type wheel struct {
	mu    sync.Mutex
	tick  int64 // the last one that was looked at
	slots [wheelSlots]timer
	used  [wheelSlots / 64]uint64 // slots that are not empty
	due   timer                   // expired, not popped yet
}

const (
	wheelSlots = 512
	tickShift  = 23 // 8.4 ms a tick, 4.3 s a turn
	noSlot     = -1
)

// A timer is a node of a wheel, inside of what it times. Empty lists have nil
// links; a timer that is in a list has none.
type timer struct {
	next, prev *timer
	due        int64 // tick
	slot       int16
	flight     *flight
	conn       *conn
}

func tickOf(at time.Duration) int64 { return int64(at) >> tickShift }

func (t *timer) unlink() {
	t.next.prev, t.prev.next = t.prev, t.next
	t.next, t.prev = nil, nil
}

func (t *timer) link(list *timer) {
	if list.next == nil {
		list.next, list.prev = list, list
	}
	t.next, t.prev = list.next, list
	list.next.prev, list.next = t, t
}

func (t *timer) empty() bool { return t.next == nil || t.next == t }

// arm sets t to expire at the given time, whatever it was set to before.
func (w *wheel) arm(t *timer, at time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remove(t)
	t.due = max(tickOf(at), w.tick) + 1
	t.slot = int16(t.due % wheelSlots)
	t.link(&w.slots[t.slot])
	w.used[t.slot/64] |= 1 << (t.slot % 64)
}

// disarm makes sure that t is not popped any more.
func (w *wheel) disarm(t *timer) {
	w.mu.Lock()
	w.remove(t)
	w.mu.Unlock()
}

func (w *wheel) remove(t *timer) {
	if t.next == nil {
		return
	}
	t.unlink()
	if t.slot != noSlot && w.slots[t.slot].empty() {
		w.used[t.slot/64] &^= 1 << (t.slot % 64)
	}
}

// pop returns one timer that expired by now, or nil.
func (w *wheel) pop(now time.Duration) *timer {
	w.mu.Lock()
	defer w.mu.Unlock()
	to := tickOf(now)
	if to-w.tick > wheelSlots {
		w.tick = to - wheelSlots // every slot is looked at once
	}
	for w.due.empty() && w.tick < to {
		w.tick++
		slot := int(w.tick % wheelSlots)
		if w.used[slot/64]&(1<<(slot%64)) == 0 {
			continue
		}
		list := &w.slots[slot]
		for t := list.next; t != list; {
			next := t.next
			if t.due <= to {
				t.unlink()
				t.slot = noSlot
				t.link(&w.due)
			}
			t = next
		}
		if list.empty() {
			w.used[slot/64] &^= 1 << (slot % 64)
		}
	}
	if w.due.empty() {
		return nil
	}
	t := w.due.prev
	t.unlink()
	return t
}

// next returns when the wheel must be looked at again; ok is false if it is
// empty. A timer of a later turn makes it look once a turn.
func (w *wheel) next() (at time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.due.empty() {
		return time.Duration(w.tick) << tickShift, true
	}
	from := int((w.tick + 1) % wheelSlots)
	for i := 0; i <= len(w.used); i++ {
		word := (from/64 + i) % len(w.used)
		set := w.used[word]
		switch i {
		case 0:
			set &= ^uint64(0) << (from % 64)
		case len(w.used):
			set &= 1<<(from%64) - 1
		}
		if set != 0 {
			slot := word*64 + bits.TrailingZeros64(set)
			ahead := (slot - from + wheelSlots) % wheelSlots
			return time.Duration(w.tick+1+int64(ahead)) << tickShift, true
		}
	}
	return 0, false
}
