package search

import "math"

// A Sample is the state of a run at one moment.
type Sample struct {
	At       float64 // s since its start
	Sent     int64
	InFlight int64 // sent and not yet ended
}

// An Overload says how a queue grew.
type Overload struct {
	// Arrivals and Completions are per second, over the second half of the part
	// that was looked at.
	Arrivals    float64 `json:"arrivals_per_second"`
	Completions float64 `json:"completions_per_second"`
	// Growth is of the requests in flight, per second.
	Growth float64 `json:"in_flight_growth_per_second"`
	From   int64   `json:"in_flight_from"`
	To     int64   `json:"in_flight_to"`
}

// Bounds of what counts as overload.
const (
	skipShare   = 0.2  // of the time at the beginning, in which the system fills
	minSamples  = 16   // behind that
	minFit      = 0.75 // R² of a line through the requests in flight: a queue within its capacity comes back
	minDeficit  = 0.01 // of the arrivals of the second half, that did not complete
	minGrown    = 5    // requests
	noiseFactor = 2    // standard deviations of the arrivals' unevenness
	lagging     = 0.05 // of the arrivals of the second half
	minLonger   = 1.05 // growth of in flight over arrivals: of the time in the system
)

// detect says whether the queue of an open-loop run grew without bound: nil if it
// did not, not sure if by more than lagging but no more than the arrivals'
// unevenness may explain. Samples are in order, evenly spaced, and end with the
// last send.
func detect(samples []Sample) (o *Overload, sure bool) {
	if len(samples) == 0 {
		return nil, false
	}
	end := samples[len(samples)-1].At
	first := 0
	for first < len(samples) && samples[first].At < skipShare*end {
		first++
	}
	s := samples[first:]
	if len(s) < minSamples {
		return nil, false
	}
	n := float64(len(s))
	var mt, ml float64
	for _, x := range s {
		mt, ml = mt+x.At/n, ml+float64(x.InFlight)/n
	}
	var stt, stl, sll float64
	for _, x := range s {
		dt, dl := x.At-mt, float64(x.InFlight)-ml
		stt, stl, sll = stt+dt*dt, stl+dt*dl, sll+dl*dl
	}
	if stt == 0 || sll == 0 || stl <= 0 || stl*stl/(stt*sll) < minFit {
		return nil, false
	}
	half := len(s) / 2
	begin, mid, last := s[0], s[half], s[len(s)-1]
	arrived := float64(last.Sent - mid.Sent)
	grown := float64(last.InFlight - mid.InFlight)
	before := float64(mid.Sent-begin.Sent) / (mid.At - begin.At)
	o = &Overload{
		Arrivals: arrived / (last.At - mid.At), Completions: (arrived - grown) / (last.At - mid.At), Growth: stl / stt,
		From: begin.InFlight, To: last.InFlight,
	}
	if arrived == 0 || grown < minDeficit*arrived || grown < minGrown {
		return nil, false
	}
	var early, late float64
	for i, x := range s {
		if i < half {
			early += float64(x.InFlight) / float64(half)
		} else {
			late += float64(x.InFlight) / float64(len(s)-half)
		}
	}
	if early > 0 && late/early < minLonger*max(1, o.Arrivals/before) {
		return nil, false
	}
	if grown >= noiseFactor*math.Sqrt(dispersion(s)*arrived) {
		return o, true
	}
	if grown >= lagging*arrived {
		return o, false
	}
	return nil, false
}

// dispersion is the variance of the arrivals between two samples over their
// mean: 1 of a Poisson process, 0 of an even one. A trend is taken out by
// differences of neighbours.
func dispersion(s []Sample) float64 {
	var sum, diff float64
	for i := 1; i < len(s); i++ {
		a := float64(s[i].Sent - s[i-1].Sent)
		sum += a
		if i > 1 {
			d := a - float64(s[i-1].Sent-s[i-2].Sent)
			diff += d * d / 2
		}
	}
	if sum == 0 {
		return 0
	}
	return diff / float64(len(s)-2) / (sum / float64(len(s)-1))
}
