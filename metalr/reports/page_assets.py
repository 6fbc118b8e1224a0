"""Style and script of the report's page. Both are put into the page, which fetches nothing."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #5b6068; --rule: #d5d8dd; --paper: #fff; --stripe: #f6f7f8;
  --mark: #e3f0fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a2a8b1; --rule: #3a3f47; --paper: #16181c;
  --stripe: #1d2025; --mark: #17334a; } figure.chart polyline, figure.chart polygon, figure.chart g, .legend i, .dot
  { filter: brightness(1.35); } }
* { box-sizing: border-box; }
[hidden] { display: none; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 1.5em auto; padding: 0 1em; color: var(--ink);
  background: var(--paper); overflow-wrap: break-word; }
h1 { font-size: 1.5em; line-height: 1.25; } h2 { margin-top: 2.2em; border-bottom: 1px solid var(--rule); }
h3 { margin-bottom: .4em; } a { color: inherit; }
.headline { font-size: 1.15em; max-width: 46em; } nav ul { margin: .3em 0; padding-left: 1.2em; columns: 16em; }
p { max-width: 80em; } .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: right; padding: 3px 10px; white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: inherit; }
tr { background: var(--paper); } thead th { box-shadow: inset 0 -2px var(--soft); }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid currentColor; }
th[aria-sort=ascending] button::after { content: " \\2191"; } th[aria-sort=descending] button::after
  { content: " \\2193"; }
tbody tr:nth-child(even) { background: var(--stripe); }
tbody tr.marked { font-weight: 600; background: var(--mark); }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .5em; }
.note { color: var(--soft); font-size: 13px; margin: .4em 0; } pre { font-size: 12px; overflow-x: auto; }
details { margin: .6em 0; } summary { cursor: pointer; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1em; }
figure.chart { margin: 1em 0; position: relative; min-width: 0; max-width: 640px; }
figcaption { font-weight: 600; font-size: 13px; }
figure.chart svg { width: 100%; height: auto; color: var(--ink); display: block; touch-action: pan-y; }
svg text { font-size: 12px; fill: var(--soft); } svg .grid { stroke: var(--rule); stroke-width: .6; }
svg .axis { stroke: var(--soft); fill: none; } svg polyline { fill: none; stroke-linejoin: round; }
svg .pointer { stroke: var(--soft); stroke-dasharray: 3 3; }
.legend { font-size: 12px; margin: .2em 0; display: flex; flex-wrap: wrap; gap: .2em 1em; }
.legend i { display: inline-block; width: 1.8em; margin-right: .4em; vertical-align: middle; }
.readout { position: absolute; top: 1.8em; right: 0; background: var(--paper); border: 1px solid var(--rule);
  padding: .3em .6em; font-size: 12px; font-variant-numeric: tabular-nums; pointer-events: none; white-space: pre; }
@media (max-width: 500px) { svg text { font-size: 17px; } body { padding: 0 .7em; } .readout { position: static; } }
"""

SCRIPT = """
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg"), pointer = svg.querySelector(".pointer");
  const readout = figure.querySelector(".readout"), data = JSON.parse(figure.querySelector("script").textContent);
  const nearest = (line, x) =>
    line.px.reduce((best, p, i) => Math.abs(p - x) < Math.abs(line.px[best] - x) ? i : best, 0);
  const show = event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const all = data.lines.map(line => [line, nearest(line, x)]);
    const [first, i] = all.reduce((a, b) => Math.abs(b[0].px[b[1]] - x) < Math.abs(a[0].px[a[1]] - x) ? b : a);
    pointer.setAttribute("x1", first.px[i]); pointer.setAttribute("x2", first.px[i]);
    const rows = all.filter(([line, k]) => Math.abs(line.px[k] - first.px[i]) < 12);
    readout.textContent = [data.xLabel + ": " + first.x[i], ...rows.map(([line, k]) => line.name + ": " + line.y[k])]
      .join("\\n");
    pointer.removeAttribute("hidden"); readout.hidden = false;
    readout.style.right = x > 320 ? "auto" : "0"; readout.style.left = x > 320 ? "4.5em" : "auto";
  };
  svg.addEventListener("pointermove", show); svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { pointer.setAttribute("hidden", ""); readout.hidden = true; });
}
const value = text => text === "" ? NaN : text === "inf" ? Infinity : parseFloat(text.replace(/^x/, ""));
for (const table of document.querySelectorAll("table")) {
  table.querySelectorAll("th").forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const rows = [...table.tBodies[0].rows], text = row => row.cells[column].textContent.trim();
    rows.sort((a, b) => {
      const [x, y] = [value(text(a)), value(text(b))];
      if (isNaN(x) && isNaN(y)) return text(a).localeCompare(text(b)) * (down ? -1 : 1);
      if (isNaN(x) || isNaN(y)) return isNaN(x) ? 1 : -1;
      return (x === y ? 0 : x < y ? -1 : 1) * (down ? -1 : 1);
    });
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...rows);
  }));
}
"""
