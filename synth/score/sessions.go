package score

import "math"

// Turns returns the number of rows of each session.
func Turns(s *Sample) []float64 {
	if s.Session == nil {
		return nil
	}
	count := map[int32]int{}
	var order []int32
	for _, id := range s.Session {
		if id < 0 {
			continue
		}
		if count[id]++; count[id] == 1 {
			order = append(order, id)
		}
	}
	turns := make([]float64, len(order))
	for i, id := range order {
		turns[i] = float64(count[id])
	}
	return turns
}

// ThinkTimes returns the known pauses between an answer and the next turn.
func ThinkTimes(s *Sample) []float64 {
	var x []float64
	for _, v := range s.Think {
		if !math.IsNaN(v) {
			x = append(x, v)
		}
	}
	return x
}

// Growth returns, for each later turn whose lengths are known, by how many
// tokens its prompt is longer than its parent's.
func Growth(s *Sample) []float64 {
	if s.Parent == nil || s.In == nil {
		return nil
	}
	var x []float64
	for i, p := range s.Parent {
		if p >= 0 && s.In[i] >= 0 && s.In[p] >= 0 {
			x = append(x, float64(s.In[i]-s.In[p]))
		}
	}
	return x
}
