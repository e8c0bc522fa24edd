package reprise

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layers says what each room may import of this module, besides packages below
// itself and internal ones. A new arrow is a design decision: make it here,
// where a reviewer will see it, and draw it in ARCHITECTURE.md.
var layers = map[string][]string{
	"traceformat":         {},
	"traceformat/convert": {"traceformat"},
	"capture":             {"traceformat"},
	"synth":               {"traceformat"},
	"backends":            {"traceformat"},
	// A program, like those in cmd: what make score runs.
	"synth/score/acceptance": {"synth", "traceformat", "traceformat/convert"},
	"gpu":                    {"traceformat"},
	"replay":                 {"traceformat", "backends", "gpu"},
	"report":                 {"traceformat", "gpu"}, // to show telemetry beside latencies
}

// internalLayers says what the internal packages may import: they lie below
// whoever uses them.
var internalLayers = []string{"traceformat"}

func TestLayers(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}:{{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		pkg, imports, _ := strings.Cut(strings.TrimSpace(line), ":")
		pkg = strings.TrimPrefix(pkg, "reprise/")
		for imp := range strings.FieldsSeq(imports) {
			imp, ours := strings.CutPrefix(imp, "reprise/")
			if ours && !allowed(pkg, imp) {
				t.Errorf("%s imports %s, which layers_test.go does not allow", pkg, imp)
			}
		}
	}
}

func allowed(pkg, imp string) bool {
	room, below := roomOf(pkg)
	switch {
	case room == "cmd":
		return true
	case room == "internal":
		return strings.HasPrefix(imp, "internal/") || slices.Contains(internalLayers, imp)
	case room == "":
		return pkg == "reprise"
	case strings.HasPrefix(imp, "internal/"):
		return true
	}
	target, _ := roomOf(imp)
	return target == room || slices.Contains(below, target)
}

// roomOf finds the longest entry of layers that pkg lies in.
func roomOf(pkg string) (room string, below []string) {
	top, _, _ := strings.Cut(pkg, "/")
	if top == "cmd" || top == "internal" {
		return top, nil
	}
	for r, b := range layers {
		if (pkg == r || strings.HasPrefix(pkg, r+"/")) && len(r) > len(room) {
			room, below = r, b
		}
	}
	return room, below
}
