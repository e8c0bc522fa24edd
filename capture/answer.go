package capture

// answerState is what an Exchange knows of its answer.
type answerState struct{}

func (a *answerState) head(x *Exchange, t int64, status int, h Header) {}
func (a *answerState) body(x *Exchange, t int64, p []byte)             {}
func (a *answerState) gap(n int64)                                     {}
func (a *answerState) release()                                        {}

func (x *Exchange) finish(t int64, how Ending) {
	if x.over {
		return
	}
	x.discard(ReasonIncomplete)
}
