//go:build !(cgo && linux && !nonvml)

package nvml

import "reprise/gpu"

// Built says whether this binary has NVML.
const Built = false

// Open fails: this binary was built without cgo, for another system, or with
// the tag nonvml. There are no sources, for that will not change.
func Open(Options) ([]gpu.Source, error) {
	return nil, gpu.Faultf(gpu.FaultNotBuilt, "this build has no NVML; it is in builds for Linux with CGO_ENABLED=1, and a DCGM exporter or nvidia-smi serve in its place")
}
