package html_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"reprise/report/html"
	"reprise/report/study"
	"reprise/report/study/studytest"
)

// A study is read on a desk and on a phone, by day and by night, and on paper;
// its page asks nothing of the network and has nothing to complain of. Hostile
// names stay text.
func TestStudyInABrowser(t *testing.T) {
	ctx := html.Browser(t)
	e := studytest.Typical()
	e.Rows = 370
	e.Plan["title"] = studytest.Evil
	e.Cells[0].Extra["options"] = []string{studytest.Evil}
	dir := t.TempDir()
	e.Write(t, dir)
	if _, err := study.Write(t.Context(), dir, study.Config{Seed: 1}); err != nil {
		t.Fatal(err)
	}
	asked, said := html.Watch(t, ctx)
	html.Media(t, ctx, "light", "")
	page := "file://" + filepath.Join(dir, study.HTMLFile)
	html.Do(t, ctx, chromedp.EmulateViewport(1280, 900), chromedp.Navigate(page))
	if s := html.Eval[string](t, ctx, `document.querySelector("h1").textContent`); s != studytest.Evil {
		t.Errorf("the title is %q", s)
	}
	if n := html.Eval[int](t, ctx, `document.querySelectorAll("img, h1 *, main script, main style").length`); n != 0 {
		t.Errorf("%d elements came out of names", n)
	}
	for _, id := range []string{"summary", "recommendation", "load", "pareto", "cells", "effects", "interactions", "tail", "memory", "cost", "repeat", "how"} {
		if !html.Eval[bool](t, ctx, `document.getElementById("`+id+`") !== null`) {
			t.Errorf("no section %s", id)
		}
	}
	if n := html.Eval[int](t, ctx, `[...document.querySelectorAll("figure svg")].filter(e => e.getBoundingClientRect().height > 100).length`); n < 12 {
		t.Errorf("%d drawings are shown", n)
	}
	// Texts of a drawing stay inside it.
	if s := html.Eval[string](t, ctx, `[...document.querySelectorAll("figure svg.rp")].flatMap(s => { const r = s.getBoundingClientRect(); return [...s.querySelectorAll("text")].filter(e => { const q = e.getBoundingClientRect(); return q.right > r.right + 2 || q.left < r.left - 2; }).map(e => e.textContent); }).join("|")`); s != "" {
		t.Errorf("outside of its drawing: %s", s)
	}
	column := `[...document.querySelector("#cells table.sortable").tBodies[0].rows].map(r => Number(r.cells[2].dataset.v)).filter(v => !Number.isNaN(v))`
	html.Eval[chromedp.Void](t, ctx, `document.querySelector("#cells table.sortable").tHead.rows[0].cells[2].querySelector("button").click()`)
	if v := html.Eval[[]float64](t, ctx, column); !slices.IsSorted(v) || len(v) != 12 {
		t.Errorf("sorted: %v", v)
	}
	paper := `getComputedStyle(document.body).backgroundColor`
	light := html.Eval[string](t, ctx, paper)
	html.Media(t, ctx, "dark", "")
	if dark := html.Eval[string](t, ctx, paper); dark == light {
		t.Errorf("by night it is %s too", dark)
	}
	html.Media(t, ctx, "dark", "print")
	if s := html.Eval[string](t, ctx, paper); s != light {
		t.Errorf("printed on %s", s)
	}
	html.Do(t, ctx, chromedp.EmulateViewport(390, 800), chromedp.Navigate(page))
	for _, scheme := range []string{"light", "dark"} {
		html.Media(t, ctx, scheme, "")
		if over := html.Eval[int](t, ctx, `document.documentElement.scrollWidth - innerWidth`); over > 0 {
			t.Errorf("%d pixels wider than a phone: %s", over, html.Eval[string](t, ctx, `[...document.querySelectorAll("body *")].filter(e => !e.closest(".wide") && e.getBoundingClientRect().right > innerWidth + 1).slice(0, 5).map(e => e.outerHTML.slice(0, 80)).join(" | ")`))
		}
		html.Accessible(t, ctx, "study, "+scheme)
	}
	for _, u := range asked() {
		if u != page {
			t.Errorf("asked for %s", u)
		}
	}
	if s := said(); len(s) > 0 {
		t.Errorf("the console says %q", strings.Join(s, "; "))
	}
}
