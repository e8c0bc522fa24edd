package html

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// browser starts Debian's Chromium, or skips the test. Its sandbox is off, as it
// does not work for root; the pages are this test's own.
func browser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs Debian's chromium: apt-get install --no-install-recommends chromium")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // on a busy machine, with axe-core
	t.Cleanup(cancel)
	ctx, stop := chromedp.NewExecAllocator(ctx, opts...)
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(ctx)
	t.Cleanup(end)
	return ctx
}

// watch collects what the page asks of the network and what its console says.
func watch(t *testing.T, ctx context.Context) (asked, said func() []string) {
	t.Helper()
	var mu sync.Mutex
	var urls, console []string
	if err := chromedp.Listen(ctx, func(ev any) {
		if e, ok := ev.(*network.EventRequestWillBeSent); ok {
			mu.Lock()
			defer mu.Unlock()
			urls = append(urls, e.Request.URL)
		}
	}); err != nil {
		t.Fatal(err)
	}
	messages := chromedp.Console(ctx)
	go func() { // until the browser ends
		for m, err := range messages {
			if err != nil {
				return
			}
			mu.Lock()
			console = append(console, m.String())
			mu.Unlock()
		}
	}()
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	get := func(from *[]string) func() []string {
		return func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(*from)
		}
	}
	return get(&urls), get(&console)
}

func do(t *testing.T, ctx context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

func eval[T any](t *testing.T, ctx context.Context, js string, opts ...chromedp.EvaluateOption) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js, opts...))
	if err != nil {
		t.Fatalf("%s: %v", js, err)
	}
	return v
}

func media(t *testing.T, ctx context.Context, scheme, kind string) {
	t.Helper()
	_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: kind, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	if err != nil {
		t.Fatal(err)
	}
}

// A reader sorts, points, zooms, uses the keyboard, changes the theme, looks at
// it on a phone and prints it; the page asks nothing of the network and has
// nothing to complain of.
func TestInABrowser(t *testing.T) {
	ctx := browser(t)
	compared, one := pages(t, 3000)
	dir := t.TempDir()
	family, repeats := manyPages(t, 1000)
	for name, page := range map[string][]byte{"comparison": compared, "run": one, "family": family, "repeats": repeats} {
		if err := os.WriteFile(filepath.Join(dir, name+".html"), page, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	asked, said := watch(t, ctx)
	media(t, ctx, "light", "")
	do(t, ctx, chromedp.EmulateViewport(1280, 900), chromedp.Navigate("file://"+filepath.Join(dir, "comparison.html")))

	if n := eval[int](t, ctx, `document.querySelectorAll(".is-live canvas").length`); n < 8 {
		t.Errorf("%d charts are drawn", n)
	}
	if n := eval[int](t, ctx, `[...document.querySelectorAll(".is-live > .static")].filter(e => e.offsetHeight > 0).length`); n != 0 {
		t.Errorf("%d drawings stand beside their live charts", n)
	}

	// Sort by A, up and down.
	column := `[...document.querySelector("#summary table.sortable").tBodies[0].rows].map(r => Number(r.cells[1].dataset.v)).filter(v => !Number.isNaN(v))`
	click := `document.querySelector("#summary table.sortable").tHead.rows[0].cells[1].querySelector("button").click()`
	eval[chromedp.Void](t, ctx, click)
	if v := eval[[]float64](t, ctx, column); !slices.IsSorted(v) || len(v) < 10 {
		t.Errorf("sorted: %v", v)
	}
	eval[chromedp.Void](t, ctx, click)
	v := eval[[]float64](t, ctx, column)
	if slices.Reverse(v); !slices.IsSorted(v) {
		t.Errorf("sorted the other way: %v", v)
	}
	if s := eval[string](t, ctx, `document.querySelector("#summary th[aria-sort]").ariaSort`); s != "descending" {
		t.Errorf("aria-sort is %q", s)
	}

	// Point at one chart and read all.
	at := eval[[]float64](t, ctx, `(() => { const e = document.querySelector("[data-panel=ttft] .u-over"); e.scrollIntoView({block: "center", behavior: "instant"}); const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()`)
	move := func(share float64, kind input.DispatchMouseEventType, opts ...chromedp.MouseOption) chromedp.Action[chromedp.Void] {
		return chromedp.MouseEvent(kind, at[0]+share*at[2], at[1]+at[3]/2, opts...)
	}
	do(t, ctx, move(0.4, chromedp.MouseMoved), move(0.5, chromedp.MouseMoved))
	until(t, ctx, `document.querySelectorAll(".readout b").length >= 8`)
	if s := eval[string](t, ctx, `document.querySelector("[data-panel=gauge2] .readout").textContent`); !strings.Contains(s, "A") || !strings.ContainsAny(s, "0123456789") {
		t.Errorf("readout of another chart: %q", s)
	}

	// Drag to zoom all, double-click to see all again.
	full := eval[string](t, ctx, `JSON.stringify([...document.querySelectorAll('.live')].map(e => e.dataset.range))`)
	do(t, ctx, move(0.2, chromedp.MouseMoved), move(0.2, chromedp.MousePressed, chromedp.ButtonLeft, chromedp.ClickCount(1)), move(0.4, chromedp.MouseMoved, chromedp.ButtonLeft), move(0.6, chromedp.MouseMoved, chromedp.ButtonLeft), move(0.6, chromedp.MouseReleased, chromedp.ButtonLeft, chromedp.ClickCount(1)))
	until(t, ctx, `(() => { const r = [...document.querySelectorAll('.live')].map(e => e.dataset.range); return r.every(x => x === r[0]) && JSON.stringify(r) !== `+fmt.Sprintf("%q", full)+`; })()`)

	// The keyboard does the same.
	eval[chromedp.Void](t, ctx, `document.querySelector("[data-panel=tokens] .live").focus()`)
	do(t, ctx, chromedp.KeyEvent(kb.Escape))
	until(t, ctx, `JSON.stringify([...document.querySelectorAll('.live')].map(e => e.dataset.range)) === `+fmt.Sprintf("%q", full))
	do(t, ctx, chromedp.KeyEvent(kb.Home))
	first := eval[string](t, ctx, `document.querySelector("[data-panel=tokens] .readout").textContent`)
	do(t, ctx, chromedp.KeyEvent(kb.ArrowRight), chromedp.KeyEvent(kb.ArrowRight))
	until(t, ctx, `document.querySelector("[data-panel=tokens] .readout").textContent !== `+fmt.Sprintf("%q", first))
	do(t, ctx, chromedp.KeyEvent("+"))
	until(t, ctx, `JSON.stringify([...document.querySelectorAll('.live')].map(e => e.dataset.range)) !== `+fmt.Sprintf("%q", full))

	// Light and dark, by preference and by choice.
	paper := `getComputedStyle(document.body).backgroundColor`
	light := eval[string](t, ctx, paper)
	eval[chromedp.Void](t, ctx, `document.getElementById("theme").click()`)
	dark := eval[string](t, ctx, paper)
	media(t, ctx, "dark", "")
	eval[chromedp.Void](t, ctx, `document.getElementById("theme").click()`)
	if again := eval[string](t, ctx, paper); light == dark || again != light {
		t.Errorf("light %s, dark %s, light by choice %s", light, dark, again)
	}

	// On paper it is light, whatever the reader's preference, and has the drawings.
	media(t, ctx, "dark", "print")
	if s := eval[string](t, ctx, paper); s != light {
		t.Errorf("printed on %s", s)
	}
	if n := eval[int](t, ctx, `[...document.querySelectorAll(".is-live > .static")].filter(e => e.offsetHeight > 50).length`); n < 8 {
		t.Errorf("%d drawings are printed", n)
	}
	media(t, ctx, "dark", "")

	// On a phone nothing but tables is wider than the screen.
	for _, name := range []string{"comparison", "run", "family", "repeats"} {
		do(t, ctx, chromedp.EmulateViewport(390, 800), chromedp.Navigate("file://"+filepath.Join(dir, name+".html")))
		if over := eval[int](t, ctx, `document.documentElement.scrollWidth - innerWidth`); over > 0 {
			t.Errorf("%s: %d pixels wider than a phone: %s", name, over, eval[string](t, ctx, `[...document.querySelectorAll("body *")].filter(e => !e.closest(".wide") && e.getBoundingClientRect().right > innerWidth + 1).slice(0, 5).map(e => e.outerHTML.slice(0, 80)).join(" | ")`))
		}
		for _, scheme := range []string{"light", "dark"} {
			media(t, ctx, scheme, "")
			accessible(t, ctx, name+", "+scheme)
		}
	}
	for _, u := range asked() {
		if !strings.HasPrefix(u, "file://"+dir) {
			t.Errorf("asked for %s", u)
		}
	}
	if n := len(asked()); n != 5 {
		t.Errorf("%d requests for 5 pages: %q", n, asked())
	}
	if s := said(); len(s) > 0 {
		t.Errorf("the console says %q", s)
	}
}

// until waits for a condition, which the browser reaches with its next frames.
func until(t *testing.T, ctx context.Context, js string) {
	t.Helper()
	for range 200 {
		if eval[bool](t, ctx, js) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("never: %s", js)
}

// accessible runs axe-core, where REPRISE_AXE names its axe.min.js (npm pack
// axe-core).
func accessible(t *testing.T, ctx context.Context, name string) {
	path := os.Getenv("REPRISE_AXE")
	if path == "" {
		t.Log("no accessibility check: REPRISE_AXE names no axe.min.js")
		return
	}
	js, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	eval[chromedp.Void](t, ctx, string(js)+";0")
	found := eval[string](t, ctx, `axe.run(document, {resultTypes: ["violations"]}).then(r => r.violations.map(v => v.id + " (" + v.impact + "): " + v.nodes.slice(0, 3).map(n => n.target.join(" ")).join("; ")).join("\n"))`, chromedp.EvalAwaitPromise)
	if found != "" {
		t.Errorf("%s: axe-core finds\n%s", name, found)
	}
}
