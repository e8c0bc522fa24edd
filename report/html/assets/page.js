"use strict";
(() => {
  const root = document.documentElement;
  const media = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : media.matches;
  const charts = [];

  // Light and dark.
  const button = document.getElementById("theme");
  const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  if (button) {
    button.hidden = false;
    name();
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      name();
      charts.forEach(c => c.build());
    });
  }
  media.addEventListener("change", () => { if (button) name(); charts.forEach(c => c.build()); });

  // Tables that the reader sorts.
  const key = cell => {
    const v = cell.dataset.v;
    return v === undefined ? cell.textContent.trim() : Number(v);
  };
  const order = (a, b) => {
    const x = key(a), y = key(b);
    if (typeof x === "number" && typeof y === "number") return x - y;
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
    return x.localeCompare(y, "en", { numeric: true });
  };
  document.querySelectorAll("table.sortable").forEach(table => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((th, i) => {
      if (!th.textContent.trim()) return;
      const b = document.createElement("button");
      b.type = "button";
      b.append(...th.childNodes);
      th.append(b);
      b.addEventListener("click", () => {
        const down = th.getAttribute("aria-sort") === "ascending";
        heads.forEach(h => h.removeAttribute("aria-sort"));
        th.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((r, s) => order(r.cells[i], s.cells[i]) * (down ? -1 : 1));
        body.append(...rows);
      });
    });
  });

  // What happened over time, with one cursor for all.
  const panels = JSON.parse(document.getElementById("panels").textContent) || [];
  const dashes = [undefined, [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [1, 2]]; // those of the drawings
  const css = v => getComputedStyle(root).getPropertyValue(v).trim();
  const number = v => {
    if (v == null) return "–";
    const a = Math.abs(v);
    return a >= 100 ? Math.round(v).toLocaleString("en") : a >= 10 ? v.toFixed(1) : a >= 1 || a === 0 ? String(+v.toFixed(2)) : String(+v.toPrecision(2));
  };
  const time = s => {
    s = Math.round(s * 10) / 10;
    if (s < 120) return s + " s";
    const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60, r = Math.floor(s % 60);
    return (h ? h + " h " : "") + m + " min" + (r ? " " + r + " s" : "");
  };
  const zoom = (min, max) => charts.forEach(c => c.plot.setScale("x", { min, max }));

  class Chart {
    constructor(figure, panel) {
      this.panel = panel;
      const x = panel.x;
      this.full = [x[0], x[x.length - 1]];
      const title = document.createElement("p");
      title.className = "panel-title js";
      title.textContent = panel.title + ", " + panel.unit;
      this.box = document.createElement("div");
      this.box.className = "live";
      this.box.tabIndex = 0;
      this.box.setAttribute("role", "group");
      this.box.setAttribute("aria-label", panel.title + ". Arrow keys move the cursor, plus and minus zoom, Escape shows all.");
      this.out = document.createElement("div");
      this.out.className = "readout";
      figure.prepend(title, this.out, this.box);
      figure.classList.add("is-live");
      this.box.addEventListener("keydown", e => this.key(e));
      this.box.addEventListener("focus", () => { if (this.plot.cursor.idx == null) this.move(0); });
      this.build();
      let width = this.box.clientWidth;
      new ResizeObserver(() => {
        if (this.box.clientWidth && this.box.clientWidth !== width) {
          width = this.box.clientWidth;
          this.plot.setSize({ width, height: 190 });
        }
      }).observe(this.box);
    }

    build() {
      const old = this.plot && [this.plot.scales.x.min, this.plot.scales.x.max];
      if (this.plot) this.plot.destroy();
      const p = this.panel, data = [p.x], series = [{}], bands = [];
      const ink = css("--dim"), grid = css("--line");
      p.lines.forEach(l => {
        const color = css("--rp-" + (l.color - 1));
        data.push(l.y);
        series.push({ label: l.name, stroke: color, width: 2, spanGaps: false, dash: dashes[l.color - 1], points: { show: p.x.length < 3 } });
        if (l.low) {
          data.push(l.high, l.low);
          series.push({ stroke: "transparent", points: { show: false } }, { stroke: "transparent", points: { show: false } });
          bands.push({ series: [series.length - 2, series.length - 1], fill: color + "38" });
        }
      });
      const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
      this.plot = new uPlot({
        width: this.box.clientWidth || 480, height: 190, padding: [10, 12, 0, 0],
        legend: { show: false },
        cursor: { sync: { key: "time", scales: ["x", null] }, drag: { x: true, y: false }, points: { size: 6 } },
        scales: { x: { time: false }, y: { distr: p.log ? 3 : 1, range: p.log ? undefined : (u, lo, hi) => [0, hi > 0 ? hi * 1.06 : 1] } },
        axes: [
          { ...axis, size: 28, values: (u, vs) => vs.map(v => v >= 120 || v === 0 && this.full[1] >= 600 ? time(v) : v + " s"), space: 70 },
          { ...axis, size: 52, values: (u, vs) => vs.map(v => v == null ? "" : (+v.toPrecision(4)).toLocaleString("en")) },
        ],
        series, bands,
        hooks: {
          setCursor: [u => this.show(u)],
          setScale: [(u, k) => { if (k === "x") this.box.dataset.range = u.scales.x.min + " to " + u.scales.x.max; }],
        },
      }, data, this.box);
      if (old && old[0] != null && (old[0] !== this.full[0] || old[1] !== this.full[1])) this.plot.setScale("x", { min: old[0], max: old[1] });
      this.show(this.plot);
    }

    show(u) {
      const i = u.cursor.idx, p = this.panel, parts = [];
      const item = (l, text) => {
        const s = document.createElement("span"), w = document.createElement("i"), b = document.createElement("b");
        w.className = "swatch c" + l.color;
        s.append(w, l.name);
        if (text) { b.textContent = " " + text; s.append(b); }
        return s;
      };
      p.lines.forEach(l => {
        if (i == null) return parts.push(item(l, ""));
        const v = l.y[i], lo = l.low && l.low[i], hi = l.high && l.high[i];
        parts.push(item(l, v == null ? "–" : number(v) + (lo != null && hi != null ? " (" + number(lo) + " to " + number(hi) + ")" : "")));
      });
      if (i != null) parts.unshift(time(p.x[i]));
      this.out.replaceChildren(...parts);
    }

    move(i) {
      const x = this.panel.x, s = this.plot.scales.x;
      i = Math.max(0, Math.min(x.length - 1, i));
      while (x[i] < s.min && i < x.length - 1) i++;
      while (x[i] > s.max && i > 0) i--;
      this.plot.setCursor({ left: this.plot.valToPos(x[i], "x"), top: 10 }, true, true);
    }

    key(e) {
      const i = this.plot.cursor.idx ?? 0, s = this.plot.scales.x, mid = this.panel.x[i], half = (s.max - s.min) / 2;
      const to = h => zoom(Math.max(this.full[0], mid - h), Math.min(this.full[1], mid + h));
      switch (e.key) {
        case "ArrowLeft": this.move(i - 1); break;
        case "ArrowRight": this.move(i + 1); break;
        case "Home": this.move(0); break;
        case "End": this.move(this.panel.x.length - 1); break;
        case "+": case "=": to(half / 2); break;
        case "-": to(half * 2); break;
        case "Escape": zoom(...this.full); break;
        default: return;
      }
      e.preventDefault();
    }
  }

  const byID = new Map(panels.map(p => [p.id, p]));
  document.querySelectorAll("figure[data-panel]").forEach(f => {
    const p = byID.get(f.dataset.panel);
    if (p && p.x.length > 1) charts.push(new Chart(f, p));
  });
  if (charts.length) {
    const first = document.querySelector("figure.is-live").closest(".figures");
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "Point at a chart to read all of them at that time; drag to zoom, double-click to see all. With the keyboard: arrows, plus, minus, Escape.";
    first.before(hint);
  }
})();
