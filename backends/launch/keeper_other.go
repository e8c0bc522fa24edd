//go:build !unix

package launch

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// MaybeKeep says that engines cannot be launched on this system, if this process
// was started to do so.
func MaybeKeep() {
	if _, ok := os.LookupEnv(keeperEnv); ok {
		fmt.Printf(`{"error":"engines cannot be launched on %s"}`+"\n", runtime.GOOS)
		os.Exit(1)
	}
}

func ownGroup(*exec.Cmd) {}
