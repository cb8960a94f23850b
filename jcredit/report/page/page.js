"use strict";
// Sorting, filtering and charts.  The tables are complete without this script.
const DATA = JSON.parse(document.getElementById("data").textContent);
const TITLES = {
  test_accuracy: "test accuracy (fraction)", gamma: "Gamma (cosine with true credit)",
  rho: "rho (predicted vs. true effect)", nudge: "nudge (loss change, low is good)", h_rms_last: "RMS of h_L",
};
const FIRST = ["test_accuracy", "gamma", "rho"]; // shown unless another number is chosen
const LOGARITHMIC = /^(h_rms|credit_norm|delta_norm)/;
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const title = (name) => TITLES[name] || name.replaceAll("_", " ");

// --- light and dark --------------------------------------------------------------------------------------------------

const system = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("theme"); } catch { /* files may have no storage */ }
const dark = () => (chosen ? chosen === "dark" : system.matches);

function paint() {
  document.documentElement.dataset.theme = dark() ? "dark" : "light";
  one("#theme").setAttribute("aria-pressed", String(dark()));
  redraw();
}
one("#theme").addEventListener("click", () => {
  chosen = dark() ? "light" : "dark";
  try { localStorage.setItem("theme", chosen); } catch { /* then until the page is closed */ }
  paint();
});
system.addEventListener("change", paint);

// --- sorting ---------------------------------------------------------------------------------------------------------

function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent.trim();
  const number = Number(text.replace("\u2212", "-"));
  return text === "" || text === "\u2013" || text === "reference" ? null : Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(button) {
  const head = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
  const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
  for (const other of all("th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", next);
  const rows = [...body.rows];
  rows.forEach((row, i) => { row.dataset.place ??= i; });
  const place = (row) => Number(row.dataset.place);
  const keys = new Map(rows.map((row) => [row, key(row, head.cellIndex)]));
  rows.sort((a, b) => {
    if (next === "none") return place(a) - place(b);
    const [x, y] = [keys.get(a), keys.get(b)];
    if (x === null || y === null) return (x === null) - (y === null) || place(a) - place(b); // missing ones last
    return (next === "ascending" ? compare(x, y) : compare(y, x)) || place(a) - place(b);
  });
  body.append(...rows);
}
for (const button of all("thead button")) button.addEventListener("click", () => sort(button));

// --- filtering -------------------------------------------------------------------------------------------------------

const form = one(".filters form");
const lines = all("tr.line"), runs = all("tr.run"), claims = all("tr.claim");

function text({ dataset }) {
  const { experiment, block, label, method, tier } = dataset;
  return [experiment, block, label, method, tier].join(" ").toLowerCase();
}

function matches(row, wanted) {
  const { dataset } = row;
  return ["experiment", "block", "method", "tier", "depth"].every((f) => !wanted[f] || dataset[f] === wanted[f])
    && (!wanted.seed || dataset.seed.split(" ").includes(wanted.seed))
    && (!row.matches(".line") || dataset.seed.split(" ").length >= Number(wanted.least || 0))
    && wanted.text.toLowerCase().split(" ").every((word) => text(row).includes(word));
}

function name(row) {
  const { block, label, seed } = row.dataset;
  return JSON.stringify([row.matches(".run") ? row.rowIndex : row.closest("section").id, block, label, seed]);
}

function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  for (const row of lines) row.hidden = !matches(row, wanted);
  for (const row of runs) row.hidden = !matches(row, wanted);
  const verdict = one("#verdict")?.value;
  for (const row of claims) {
    row.hidden = (verdict && row.dataset.verdict !== verdict)
      || (wanted.experiment && row.dataset.experiment !== wanted.experiment)
      || !wanted.text.toLowerCase().split(" ").every((word) => row.dataset.text.includes(word));
  }
  for (const frame of all(".experiment .scroll, #runs .scroll, #claims .scroll")) {
    frame.hidden = !one("tbody tr:not([hidden])", frame);
  }
  for (const section of all(".experiment")) section.hidden = !one("tr.line:not([hidden])", section);
  const count = (rows) => new Set(rows.map(name)).size; // a line has a row in each of its tables
  const shown = (rows) => `${count(rows.filter((row) => !row.hidden))} of ${count(rows)}`;
  one("#count").textContent = `${shown(lines)} lines, ${shown(runs)} runs`;
  redraw();
}
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", (event) => event.preventDefault());
one("#verdict")?.addEventListener("input", filter);

// --- what a chart draws ----------------------------------------------------------------------------------------------

function visible(section, block) {
  const rows = all("tr.line:not([hidden])", section);
  const there = new Set(rows.map((row) => JSON.stringify([row.dataset.block, row.dataset.label])));
  return DATA[section.dataset.key].lines
    .map((line, index) => ({ ...line, index }))
    .filter((line) => line.block === block && there.has(JSON.stringify([line.block, line.label])));
}

function points(section, kind, name, lines) {
  const found = DATA[section.dataset.key][kind][name];
  return lines.filter((line) => found[line.index]).flatMap((line) => {
    const numbers = found[line.index], { label } = line;
    if (kind === "metrics") {
      const [mean, low, high, study, seeds] = numbers;
      return [{ label, mean, low, high, study, seeds, n: seeds.length }];
    }
    const [which, mean, low = mean, high = mean] = numbers;
    return DATA[section.dataset.key].xs[which].map((at, i) => ({ label, x: at, mean: mean[i], low: low[i], high: high[i] }));
  });
}

// --- Vega-Lite -------------------------------------------------------------------------------------------------------

// A swept setting without the part that it is of, which the tables' labels and the tooltips have.
const brief = (label) => label.replace(/ (task|network|credit|rule)\.(?=[^ ]+=)/g, " ");
const labelExpr = "replace(datum.label, / (task|network|credit|rule)\\.([^ ]+=)/, ' $2')";

function scales(lines) {
  const domain = lines.map((line) => line.label);
  const colors = lines.map((line) => (dark() ? line.dark : line.color));
  const ground = dark() ? "#14171c" : "#ffffff";
  const columns = innerWidth > 700 && domain.every((label) => brief(label).length < 24) ? 2 : 1;
  const legend = { title: null, orient: "bottom", columns, labelExpr, labelLimit: 300, symbolSize: 70, symbolOpacity: 1 };
  const scaled = (range, more) => ({ field: "label", type: "nominal", sort: null, scale: { domain, range }, ...more });
  return {
    color: scaled(colors, { legend }),
    fill: scaled(lines.map((line, i) => (line.filled ? colors[i] : ground)), { legend }),
    shape: scaled(lines.map((line) => line.shape), { legend }),
    dash: scaled(lines.map((line) => line.dash), { legend }),
  };
}

const number = (field, name) => ({ field, type: "quantitative", title: name, format: ".4~g" });
const line = { field: "label", type: "nominal", title: "line" };

function means(name, values, lines) {
  const inner = values.flatMap((v) => [v.mean, ...v.seeds, ...(v.study === null ? [] : [v.study])]);
  const log = LOGARITHMIC.test(name) && inner.every((v) => v > 0);
  const [least, most] = [Math.min(...inner), Math.max(...inner)];
  const pad = (most - least) * 0.08 || Math.abs(most) * 0.1 || 0.1;
  const domain = log ? [least / 1.5, most * 1.5] : [Math.min(0, least - pad), Math.max(0, most + pad)];
  const x = (field) => ({
    field, type: "quantitative", title: title(name) + (log ? ", log scale" : ""),
    scale: { domain, type: log ? "log" : "linear", nice: false }, axis: { tickCount: 5, format: "~g" },
  });
  const y = {
    field: "label", type: "nominal", sort: null, title: null,
    axis: { labelExpr, labelLimit: innerWidth > 700 ? 220 : 130, domain: false, ticks: false, grid: true },
  };
  const { color, fill, shape } = scales(lines);
  const quiet = { ...color, legend: null };
  const tooltip = [line, number("mean", "mean"), { field: "least", type: "nominal", title: "95% from" }, { field: "most", type: "nominal", title: "to" }, number("n", "seeds"),
    { field: "theirs", type: "nominal", title: "the study" }];
  const ink = dark() ? "#ffffff" : "#000000", ground = dark() ? "#14171c" : "#ffffff";
  return {
    height: 24 * values.length,
    data: {
      values: values.map((v) => ({
        ...v, theirs: v.study ?? "\u2013", least: v.low ?? "\u2013", most: v.high ?? "\u2013", from: Math.max(v.low ?? v.mean, log ? domain[0] / 10 : -Number.MAX_VALUE),
      })),
    },
    encoding: { y },
    layer: [
      { mark: { type: "rule", clip: true, strokeWidth: 2, tooltip: true },
        encoding: { x: x("from"), x2: { field: "high" }, color: quiet, tooltip } },
      { transform: [{ flatten: ["seeds"] }],
        mark: { type: "point", clip: true, size: 24, filled: false, opacity: 0.8, strokeWidth: 1.2 },
        encoding: { x: x("seeds"), color: quiet, tooltip: [line, number("seeds", "a seed")] } },
      { mark: { type: "point", clip: true, size: 85, strokeWidth: 1.6, opacity: 1 },
        encoding: { x: x("mean"), color: quiet, fill: { ...fill, legend: null }, shape: { ...shape, legend: null }, tooltip } },
      { transform: [{ filter: "datum.study !== null" }],
        mark: { type: "point", clip: true, shape: "diamond", size: 70, filled: true, opacity: 1, color: ink,
          stroke: ground, strokeWidth: 1 },
        encoding: { x: x("study"), tooltip: [line, number("study", "the study")] } },
    ],
  };
}

function series(name, values, lines, axis) {
  const log = LOGARITHMIC.test(name) && values.every((v) => v.low > 0);
  const { color, fill, shape, dash } = scales(lines);
  const y = (field) => ({
    field, type: "quantitative", title: title(name) + (log ? ", log scale" : ""),
    scale: log ? { type: "log" } : { zero: false }, axis: { format: "~g", tickCount: 6 },
  });
  const x = { field: "x", type: "quantitative", title: axis, scale: { nice: false }, axis: { tickCount: 6 } };
  const faded = (value) => ({ condition: { param: "picked", value }, value: value / 8 });
  const tooltip = [line, number("x", axis), number("mean", "mean"), number("low", "lowest seed"),
    number("high", "highest seed")];
  const crowded = values.length / Math.max(1, lines.length) > 20;
  return {
    height: 260, data: { values }, encoding: { x },
    layer: [
      { mark: { type: "area" },
        encoding: { y: y("low"), y2: { field: "high" }, color, opacity: faded(0.15) } },
      { mark: { type: "line", strokeWidth: 1.8 },
        encoding: { y: y("mean"), color, strokeDash: dash, opacity: faded(1) } },
      { params: [{ name: "picked", select: { type: "point", fields: ["label"] }, bind: "legend" }],
        mark: { type: "point", strokeWidth: 1.4, size: crowded ? 22 : 55 },
        encoding: { y: y("mean"), color, fill, shape, opacity: faded(1), tooltip } },
    ],
  };
}

function config() {
  const ink = dark() ? "#e6e9ee" : "#1b1f24", soft = dark() ? "#a3adba" : "#5b6470";
  const rule = dark() ? "#343b45" : "#e3e7ec";
  return {
    background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    axis: { labelColor: ink, titleColor: ink, gridColor: rule, domainColor: soft, tickColor: soft, titleFontWeight: 500,
      labelFontSize: 11, titleFontSize: 12 },
    legend: { labelColor: ink, labelFontSize: 11 },
  };
}

// --- drawing what is seen --------------------------------------------------------------------------------------------

const seen = new Set(), views = new Map();

function axisOf(kind, name) {
  if (kind === "layers") return "depth (layer / L)";
  if (!name.startsWith("dl_")) return "epoch";
  return name.includes("_eta") ? "local step" : "log10 of the step size";
}

let turn = 0;

async function draw(figure) {
  const section = figure.closest("section"), { kind } = figure.dataset;
  const name = one(".metric", figure).value, block = one("select.block", section).value;
  const lines = visible(section, block);
  const values = points(section, kind, name, lines);
  const there = lines.filter((l) => values.some((v) => v.label === l.label));
  const place = one(".chart", figure), mine = ++turn;
  figure.dataset.turn = mine;
  views.get(figure)?.finalize();
  views.delete(figure);
  for (const old of all(".numbers .scroll", figure)) old.remove();
  one(".numbers", figure).open = false;
  if (!values.length) { place.textContent = "Nothing here for this choice."; return; }
  const spec = {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json", config: config(), width: "container",
    autosize: { type: "fit-x", contains: "padding" },
    description: `${title(name)}, ${block || section.dataset.key}: the numbers are in the tables of this section.`,
    ...(kind === "metrics" ? means(name, values, there) : series(name, values, there, axisOf(kind, name))),
  };
  const { view } = await vegaEmbed(place, spec, {
    renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false },
    tooltip: { theme: dark() ? "dark" : "light" },
  });
  if (figure.dataset.turn === String(mine)) views.set(figure, view); else view.finalize();
  figure.dataset.drawn = kind;
}

function tabulate(figure) {
  const section = figure.closest("section"), { kind } = figure.dataset;
  const frame = one(".numbers", figure), name = one(".metric", figure).value;
  const values = points(section, kind, name, visible(section, one("select.block", section).value));
  const columns = kind === "metrics" ? ["label", "mean", "low", "high", "study", "n"] : ["label", "x", "mean", "low", "high"];
  const table = document.createElement("table");
  table.createCaption().textContent = title(name);
  const head = table.createTHead().insertRow();
  for (const column of columns) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = column === "x" ? axisOf(kind, name) : column;
    head.append(cell);
  }
  const body = table.createTBody();
  for (const value of values) {
    const row = body.insertRow();
    for (const column of columns) row.insertCell().textContent = value[column] ?? "\u2013";
  }
  const scroll = document.createElement("div");
  Object.assign(scroll, { className: "scroll", tabIndex: 0 });
  scroll.append(table);
  for (const old of all(".scroll", frame)) old.remove();
  frame.append(scroll);
}

function redraw() {
  for (const figure of seen) if (!figure.closest("[hidden]")) draw(figure);
}

const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (isIntersecting && !seen.has(target)) { seen.add(target); draw(target); }
  }
}, { rootMargin: "200px" });

for (const section of all(".experiment")) {
  const data = DATA[section.dataset.key];
  one("select.block", section).addEventListener("input", redraw);
  for (const figure of all("figure", section)) {
    const names = Object.keys(data[figure.dataset.kind]), select = one(".metric", figure);
    if (!names.length) continue;
    for (const name of names) select.add(new Option(title(name), name));
    select.value = FIRST.find((name) => names.includes(name)) ?? names[0];
    select.addEventListener("input", () => draw(figure));
    one(".numbers", figure).addEventListener("toggle", (event) => { if (event.target.open) tabulate(figure); });
    figure.hidden = false;
    watcher.observe(figure);
  }
}
if (innerWidth < 700) one(".filters").open = false;
paint();
filter();
