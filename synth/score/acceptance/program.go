package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
)

// What rows 21 to 23 generate: traffic of lengths alone, and prompts of about 24
// blocks.
var (
	lengthsAlone = []string{"--rate", "1000", "--prompt-tokens", "lognormal:800,0.9", "--output-tokens", "lognormal:150,0.8"}
	withBlocks   = []string{"--rate", "1000", "--prompt-tokens", "lognormal:1300,0.7", "--output-tokens", "lognormal:150,0.8", "--shared-prefix", "0.3"}
)

// program is rows 21 to 23: the program itself, built and started here. Speed is
// processor time and not the clock's, so that other work on the machine does not
// count.
func (o *options) program(ctx context.Context) ([]figure, []string, error) {
	dir, err := os.MkdirTemp("", "acceptance-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "synth")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", bin, "reprise/cmd/synth").CombinedOutput(); err != nil {
		return nil, []string{"rows 21 to 23 are left out: the program does not build here: " + string(bytes.TrimSpace(out))}, nil
	}
	// run writes rows and returns the digest of the file, seconds of processor
	// time and the greatest memory in MiB.
	run := func(procs int, rows int64, args ...string) (digest string, cpu, memory float64, err error) {
		path := filepath.Join(dir, "out.parquet")
		c := exec.CommandContext(ctx, bin, append([]string{"generate", "-o", path, "--force", "--rows", fmt.Sprint(rows)}, args...)...)
		c.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", procs))
		if out, err := c.CombinedOutput(); err != nil {
			return "", 0, 0, fmt.Errorf("synth generate: %w: %s", err, bytes.TrimSpace(out))
		}
		f, err := os.Open(path)
		if err != nil {
			return "", 0, 0, err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return "", 0, 0, err
		}
		return fmt.Sprintf("%x", h.Sum(nil)), (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds(), peakMemory(c.ProcessState), nil
	}
	c := &trace{options: o, name: "program"}
	add := func(row, metric string, x float64, l limit) {
		c.add(values{"x": {x}}, "x", row, metric, "-", plain, l, "")
	}
	fmt.Fprintln(o.stderr, "program: rows 21 to 23")
	different := 0.0
	for _, args := range [][]string{lengthsAlone, withBlocks, {"model:mooncake-conv"}} {
		first, _, _, err := run(1, 50_000, args...)
		if err != nil {
			return nil, nil, err
		}
		for _, procs := range []int{2, 8} {
			digest, _, _, err := run(procs, 50_000, args...)
			if err != nil {
				return nil, nil, err
			}
			if digest != first {
				different++
			}
		}
	}
	add("21", "files that differ at GOMAXPROCS 1, 2, 8", different, atMost(0))
	_, cpu, _, err := run(1, 1_000_000, lengthsAlone...)
	if err != nil {
		return nil, nil, err
	}
	add("22", "lengths alone, CPU s for 1 M rows", cpu, atMost(1))
	if _, cpu, _, err = run(1, 300_000, withBlocks...); err != nil {
		return nil, nil, err
	}
	add("22", "with 24 block ids, CPU s for 150 k rows", cpu/2, atMost(1))
	_, _, small, err := run(2, 5_000_000, lengthsAlone...)
	if err != nil {
		return nil, nil, err
	}
	_, _, large, err := run(2, 20_000_000, lengthsAlone...)
	if err != nil {
		return nil, nil, err
	}
	if !math.IsNaN(large) {
		add("23", "memory at 20 M rows, MiB", large, atMost(256))
		add("23", "memory at 20 M rows over that at 5 M", large/small, atMost(1.25))
	}
	return c.figures, nil, nil
}
