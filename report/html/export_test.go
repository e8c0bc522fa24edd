package html

import (
	"context"
	"testing"
)

// What tests of other packages' pages use of those of this one.
var (
	Browser    = browser
	Watch      = watch
	Do         = do
	Media      = media
	Accessible = accessible
)

func Eval[T any](t *testing.T, ctx context.Context, js string) T { return eval[T](t, ctx, js) }
