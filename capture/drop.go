package capture

// Drop gives the exchange up and accounts for it under reason: what recorded it
// could not keep up.
func (x *Exchange) Drop(reason string) { x.discard(reason) }
