package synth

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// States is a Markov chain that changes its state at steps of time and sets the
// rate, and what lengths are like.
type States struct {
	Step  float64     `json:"step_s"`
	Rates []float64   `json:"rates"` // a second, by state
	Move  [][]float64 `json:"move"`  // chance of the next state, by state
	In    [][]int     `json:"in,omitempty"`
	BIC   float64     `json:"bic,omitempty"`
}

func (m *States) check(l *Lengths) error {
	k := len(m.Rates)
	if !(m.Step >= minWindow) || !interval(m.Step) || k == 0 || k > 256 || len(m.Move) != k {
		return fmt.Errorf("states: %d rates and %d rows of moves at steps of %v s", k, len(m.Move), m.Step)
	}
	var errs []error
	for i, row := range m.Move {
		sum := 0.0
		for _, p := range row {
			sum += p
			if !share(p) {
				sum = math.NaN()
			}
		}
		if len(row) != k || !(math.Abs(sum-1) < 0.01) {
			errs = append(errs, fmt.Errorf("states: the moves of state %d are not %d chances that add up to 1", i, k))
		}
		if !finite(m.Rates[i]) || m.Rates[i] < 0 || m.Rates[i] > 1e9 {
			errs = append(errs, fmt.Errorf("states: rate %v", m.Rates[i]))
		}
	}
	if m.In != nil && (l == nil || len(m.In) != k || checkTable(m.In, len(m.In[0])) != nil) {
		errs = append(errs, fmt.Errorf("states: in has to have %d rows of weights", k))
	}
	return errors.Join(errs...)
}

// stationary is the share of time in each state.
func (m *States) stationary() []float64 {
	k := len(m.Rates)
	p, q := make([]float64, k), make([]float64, k)
	for i := range p {
		p[i] = 1 / float64(k)
	}
	for range 100_000 {
		clear(q)
		for i, row := range m.Move {
			for j, x := range row {
				q[j] += p[i] * x
			}
		}
		change := 0.0
		for i := range p {
			change = max(change, math.Abs(p[i]-q[i]))
		}
		p, q = q, p
		if change < 1e-12 {
			break
		}
	}
	return p
}

// pieces returns the steps one after another.
func (m *States) pieces(l *Lengths, s *stream, rate, bursts, from float64) func(float64) piece {
	share := m.stationary()
	mean := 0.0
	for i, r := range m.Rates {
		mean += share[i] * r
	}
	rates, sum := slices.Clone(m.Rates), 0.0
	for i := range rates {
		rates[i] = max(0, mean+(rates[i]-mean)*bursts)
		sum += share[i] * rates[i]
	}
	for i := range rates {
		if sum > 0 {
			rates[i] *= rate * mean / sum
		}
	}
	moves := make([]alias, len(m.Move))
	for i, row := range m.Move {
		moves[i] = newAlias(row)
	}
	var tables []*windowLengths
	if l != nil {
		for _, row := range m.In {
			tables = append(tables, &windowLengths{in: newAlias(floats(row))})
		}
	}
	state, steps := newAlias(share).draw(s.uniform()), 0
	return func(float64) piece {
		if steps > 0 {
			state = moves[state].draw(s.uniform())
		}
		steps++
		w := piece{end: from + float64(steps)*m.Step, rate: rates[state], count: -1}
		if tables != nil {
			w.lengths = tables[state]
		}
		return w
	}
}

// mmppBins bounds the work of a fit: more seconds than that are taken in wider
// steps.
const mmppBins = 60_000

// fitMMPP fits hidden Markov chains with Poisson counts by EM (Baum, Petrie,
// Soules, Weiss 1970) and takes the number of states by BIC. inBin holds the
// bin of the input of each row, of k bins, or is nil.
func fitMMPP(arrival []float64, horizon float64, inBin []int32, k int) *States {
	step := 1.0
	for horizon/step > mmppBins || horizon/step > 4*float64(len(arrival)) {
		step *= 2
	}
	for step > 0.01 && horizon/step < 200 {
		step /= 2
	}
	n := windowsOf(horizon, step)
	counts := make([]float64, n)
	for _, t := range arrival {
		counts[min(n-1, int(t/step))]++
	}
	var best *hmm
	for states := 2; states <= 8 && states*states*4 < n; states++ {
		h := newHMM(counts, states)
		h.run(40)
		if best != nil && h.bic() >= best.bic() {
			break
		}
		best = h
	}
	if best == nil {
		return nil
	}
	m := &States{Step: step, BIC: rounded(best.bic(), 1)}
	for i := range best.rate {
		m.Rates = append(m.Rates, significant(best.rate[i]/step, 5))
		row := make([]float64, len(best.rate))
		sum := 0.0
		for j := range row {
			row[j] = rounded(best.move[i][j], 7)
			sum += row[j]
		}
		row[i] = max(0, rounded(row[i]+1-sum, 7))
		m.Move = append(m.Move, row)
	}
	if inBin != nil && k > 1 {
		weights := make([][]float64, len(best.rate))
		for i := range weights {
			weights[i] = make([]float64, k)
		}
		for r, t := range arrival {
			b := min(n-1, int(t/step))
			if inBin[r] < 0 {
				continue
			}
			for i := range weights {
				weights[i][inBin[r]] += best.post[b*len(best.rate)+i]
			}
		}
		for i := range weights {
			row, sum := make([]int, k), 0
			for j, w := range weights[i] {
				row[j] = int(math.Round(w))
				sum += row[j]
			}
			if sum == 0 {
				for j := range row {
					row[j] = 1
				}
			}
			m.In = append(m.In, row)
		}
	}
	return m
}

// hmm is a chain under estimation. All tables are flat, state fastest.
type hmm struct {
	counts     []float64
	rate       []float64
	move       [][]float64
	start      []float64
	alpha      []float64
	post       []float64
	scale      []float64
	emit       []float64
	beta, prev []float64
	likelihood float64
}

func newHMM(counts []float64, k int) *hmm {
	n := len(counts)
	h := &hmm{counts: counts, alpha: make([]float64, n*k), post: make([]float64, n*k), emit: make([]float64, n*k), scale: make([]float64, n), beta: make([]float64, k), prev: make([]float64, k)}
	// Start from quantiles of the counts, smoothed over a minute's worth of steps
	// so that states mean regimes and not noise.
	width := max(1, min(n/20, 10))
	smooth := make([]float64, n)
	sum := 0.0
	for i, c := range counts {
		sum += c
		if i >= width {
			sum -= counts[i-width]
		}
		smooth[i] = sum / float64(min(i+1, width))
	}
	slices.Sort(smooth)
	for i := range k {
		r := smooth[min(n-1, int((float64(i)+0.5)/float64(k)*float64(n)))]
		h.rate = append(h.rate, max(r, 1e-3)*(1+0.01*float64(i)))
		row := make([]float64, k)
		for j := range row {
			row[j] = 0.05 / float64(max(1, k-1))
		}
		row[i] = 0.95
		if k == 1 {
			row[i] = 1
		}
		h.move = append(h.move, row)
		h.start = append(h.start, 1/float64(k))
	}
	return h
}

func (h *hmm) bic() float64 {
	k := float64(len(h.rate))
	return -2*h.likelihood + k*k*math.Log(float64(len(h.counts)))
}

func (h *hmm) run(rounds int) {
	last := math.Inf(-1)
	for range rounds {
		h.step()
		if h.likelihood-last < 1e-7*math.Abs(last) {
			return
		}
		last = h.likelihood
	}
}

// step is one round of EM with scaled forward and backward passes.
func (h *hmm) step() {
	k, n := len(h.rate), len(h.counts)
	logRate := make([]float64, k)
	for i, r := range h.rate {
		logRate[i] = math.Log(r)
	}
	h.likelihood = 0
	for t, c := range h.counts {
		emit := h.emit[t*k : t*k+k]
		top := math.Inf(-1)
		for i := range emit {
			emit[i] = c*logRate[i] - h.rate[i]
			top = max(top, emit[i])
		}
		for i := range emit {
			emit[i] = math.Exp(emit[i] - top)
		}
		alpha := h.alpha[t*k : t*k+k]
		sum := 0.0
		for j := range alpha {
			a := h.start[j]
			if t > 0 {
				a = 0
				before := h.alpha[(t-1)*k : t*k]
				for i := range before {
					a += before[i] * h.move[i][j]
				}
			}
			alpha[j] = a * emit[j]
			sum += alpha[j]
		}
		sum = max(sum, 1e-300)
		for j := range alpha {
			alpha[j] /= sum
		}
		h.scale[t] = sum
		lg, _ := math.Lgamma(c + 1)
		h.likelihood += math.Log(sum) + top - lg
	}
	moves := make([][]float64, k)
	for i := range moves {
		moves[i] = make([]float64, k)
	}
	beta, prev := h.beta, h.prev
	for i := range beta {
		beta[i] = 1
	}
	sumPost, sumCount := make([]float64, k), make([]float64, k)
	for t := n - 1; t >= 0; t-- {
		post := h.post[t*k : t*k+k]
		sum := 0.0
		for i := range post {
			post[i] = h.alpha[t*k+i] * beta[i]
			sum += post[i]
		}
		for i := range post {
			post[i] /= max(sum, 1e-300)
			sumPost[i] += post[i]
			sumCount[i] += post[i] * h.counts[t]
		}
		if t == 0 {
			copy(h.start, post)
			break
		}
		emit, before := h.emit[t*k:t*k+k], h.alpha[(t-1)*k:t*k]
		for i := range prev {
			prev[i] = 0
			for j := range beta {
				x := h.move[i][j] * emit[j] * beta[j] / h.scale[t]
				prev[i] += x
				moves[i][j] += before[i] * x
			}
		}
		beta, prev = prev, beta
	}
	for i := range h.rate {
		h.rate[i] = max(1e-9, sumCount[i]/max(sumPost[i], 1e-12))
		sum := 0.0
		for j := range moves[i] {
			moves[i][j] += 1e-9
			sum += moves[i][j]
		}
		for j := range moves[i] {
			h.move[i][j] = moves[i][j] / sum
		}
	}
}
