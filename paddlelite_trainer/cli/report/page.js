"use strict";
// Everything that comes from a run reaches the page as text: by textContent, or through `label` into plotly, whose
// labels know a few tags.

const COLOURS = ["#3b82f6", "#f97316", "#10b981", "#ef4444", "#a855f7", "#ca8a04", "#06b6d4", "#ec4899", "#65a30d", "#64748b"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const MANY = 6;
const RATE = /^(.*\/)?lr([-\/].*)?$|learning_rate|-(momentum|weight_decay)$/i;
const PACE = /(^|\/)(samples_per_second|batches_per_second|data_wait_share|steps_per_second|ips)$/;
const AXES = [["step", "Step"], ["epoch", "Epoch"], ["time", "Time worked"], ["date", "Date"]];

let data = JSON.parse(document.getElementById("data").textContent);
let etag = null;
const view = {
  chosen: new Set(), isDefault: true, filter: "", sort: null, down: false, axis: "step", smooth: 0, log: false,
  together: null, marks: true, names: "", differs: null, range: null,
};
const $ = (id) => document.getElementById(id);

function element(tag, options, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(options || {})) {
    if (key === "class") made.className = value;
    else if (key === "style") Object.assign(made.style, value);
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) made.append(child);
  return made;
}
const label = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// A long name may break after what parts it.
const broken = (name) => name.split(/(?<=[\/_.-])/).flatMap((piece) => [piece, element("wbr")]);

// ---- words ----------------------------------------------------------------------------------------------------------
const digits = (value) => {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value; // nan, inf
  if (Number.isInteger(value)) return Math.abs(value) < 1e6 ? String(value) : value.toLocaleString("en");
  return String(Number(value.toPrecision(5)));
};
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${seconds >= 10 ? Math.round(seconds) : seconds >= 1 ? seconds.toFixed(1) : Number(seconds.toPrecision(2))} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${(minutes / 1440).toFixed(1)} d`;
}
const pad = (number) => String(number).padStart(2, "0");
function date(seconds, precise) {
  if (seconds === null || seconds === undefined) return "";
  const at = new Date(seconds * 1000);
  const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}` + (precise ? `:${pad(at.getSeconds())}` : "");
  return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${clock}`;
}
function bytes(count) {
  if (count === null || count === undefined) return "";
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000) return `${unit === "B" || count >= 100 ? Math.round(count) : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
  return `${count.toFixed(1)} TB`;
}
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// ---- runs -----------------------------------------------------------------------------------------------------------
const chosenRuns = () => data.runs.filter((run) => view.chosen.has(run.path));
function colourOf(run) {
  const at = chosenRuns().indexOf(run);
  return COLOURS[(at < 0 ? 0 : at) % COLOURS.length];
}
const dashOf = (run) => DASHES[Math.floor(chosenRuns().indexOf(run) / COLOURS.length) % DASHES.length];
const cssDash = { solid: "solid", dash: "dashed", dot: "dotted", dashdot: "dashed" };
const swatch = (colour, dash) => element("i", { class: "swatch", style: { borderTopColor: colour, borderTopStyle: cssDash[dash || "solid"] } });

function common(values) {
  const found = new Set(values.filter((value) => value !== null && value !== undefined));
  return found.size === 1 ? [...found][0] : null;
}
const sharedMonitor = () => common(data.runs.filter((run) => run.best).map((run) => run.monitor));
const sharedMode = () => common(data.runs.filter((run) => run.best).map((run) => run.mode));
function ranked() {
  const sign = sharedMode() === "max" ? -1 : 1;
  return data.runs.filter((run) => run.best && typeof run.best.value === "number").sort((one, other) => sign * (one.best.value - other.best.value));
}
const canRank = () => Boolean(sharedMonitor() && sharedMode());
const newest = () => [...data.runs].sort((one, other) => (other.began || 0) - (one.began || 0));

function chooseByDefault() {
  const few = data.runs.length <= 8 ? data.runs : canRank() ? ranked().slice(0, 5) : newest().slice(0, 5);
  if (data.runs.length > 8 && canRank() && view.sort === null) {
    view.sort = `best ${sharedMonitor()}`;
    view.down = sharedMode() === "max";
  }
  view.chosen = new Set((few.length ? few : data.runs.slice(0, 5)).map((run) => run.path));
}
function choose(runs) {
  view.isDefault = false;
  view.chosen = new Set(runs.map((run) => run.path));
  showAll();
}

function differingSettings() {
  const values = new Map();
  for (const run of data.runs) for (const [name, value] of Object.entries(run.settings)) {
    if (name.startsWith("environment.")) continue;
    if (!values.has(name)) values.set(name, new Set());
    values.get(name).add(value);
  }
  const withSettings = data.runs.filter((run) => Object.keys(run.settings).length).length;
  const named = [...values].filter(([name, found]) => found.size > 1 || data.runs.some((run) => Object.keys(run.settings).length && !(name in run.settings)));
  const names = named.map(([name]) => name).filter((name) => withSettings > 1 && name !== "trainer.run_name");
  const weight = (name) => (name.startsWith("hyper_parameters.") ? 0 : name === "trainer.seed" ? 2 : 1);
  return names.sort((one, other) => weight(one) - weight(other)).slice(0, 10);
}
const settingName = (name) => name.replace(/^(hyper_parameters|trainer|environment)\./, "");

function lastNames() {
  const counts = new Map();
  for (const run of data.runs) for (const name of Object.keys(run.last)) {
    if (!RATE.test(name) && !PACE.test(name) && !name.endsWith("_step")) counts.set(name, (counts.get(name) || 0) + 1);
  }
  const weight = (name) => (/^val/.test(name) ? 0 : /^test/.test(name) ? 1 : 2);
  return [...counts].sort((one, other) => weight(one[0]) - weight(other[0]) || other[1] - one[1]).slice(0, 6).map(([name]) => name);
}

function columns() {
  const monitor = sharedMonitor();
  const list = [
    { name: "run", text: (run) => run.name, sort: (run) => run.name },
    { name: "status", text: statusWords, sort: (run) => run.status, kind: "status" },
  ];
  if (data.runs.some((run) => run.best)) list.push({
    name: monitor ? `best ${monitor}` : "best",
    text: (run) => (run.best ? (monitor ? "" : `${run.monitor} `) + digits(run.best.value) : ""),
    sort: (run) => (run.best ? run.best.value : null), kind: "number", downFirst: sharedMode() === "max",
  });
  list.push({ name: "epoch", text: (run) => digits(run.epoch), sort: (run) => run.epoch, kind: "number" });
  list.push({ name: "step", text: (run) => digits(run.step), sort: (run) => run.step, kind: "number" });
  for (const name of lastNames()) list.push({ name: `last ${name}`, text: (run) => digits(run.last[name]), sort: (run) => run.last[name], kind: "number" });
  for (const name of differingSettings()) list.push({
    name: settingName(name), text: (run) => run.settings[name] ?? "",
    sort: (run) => { const value = run.settings[name]; return value === undefined ? null : value !== "" && !isNaN(value) ? Number(value) : value; },
  });
  list.push({ name: "worked", text: (run) => duration(run.worked), sort: (run) => run.worked, kind: "number" });
  list.push({ name: "began", text: (run) => date(run.began), sort: (run) => run.began, kind: "short", downFirst: true });
  list.push({ name: "processes", text: (run) => (run.sessions.length ? String(run.sessions.length) + (kills(run) ? `, ${plural(kills(run), "kill")}` : "") : ""), sort: (run) => run.sessions.length, kind: "short" });
  return list;
}
const kills = (run) => run.sessions.filter((session) => session.killed).length;
function statusWords(run) {
  const reason = run.reason ? String(run.reason).split("\n")[0] : "";
  return reason ? `${run.status}: ${reason.length > 70 ? reason.slice(0, 67) + "..." : reason}` : run.status;
}

function compare(one, other) {
  const empty = (value) => value === null || value === undefined || value === "" || value === "nan";
  if (empty(one) || empty(other)) return empty(one) - empty(other);
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

function showFacts(run) {
  const facts = columns().slice(1).map((column) => [column.name, column.text(run)]).filter(([, text]) => text !== "");
  $("runs-table").replaceChildren(element("dl", { class: "facts" }, facts.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", { class: name === "status" ? run.status : "" }, text)))));
}
function showRuns() {
  const isAlone = data.runs.length === 1;
  $("runs").firstElementChild.hidden = isAlone;
  if (isAlone) return showFacts(data.runs[0]);
  const list = columns();
  const words = view.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const searched = (run) => [run.path, ...list.map((column) => `${column.name} ${column.text(run)}`), ...Object.entries(run.settings).map(([name, value]) => `${settingName(name)} ${value}`)].join(" ").toLowerCase();
  let runs = data.runs.filter((run) => { const text = words.length ? searched(run) : ""; return words.every((word) => text.includes(word)); });
  const by = list.find((column) => column.name === view.sort);
  if (by) {
    const sign = view.down ? -1 : 1;
    const empty = (run) => { const value = by.sort(run); return value === null || value === undefined || value === "" || value === "nan"; };
    runs = [...runs].sort((one, other) => (empty(one) || empty(other) ? empty(one) - empty(other) : sign * compare(by.sort(one), by.sort(other))));
  }
  const box = $("runs-table"), scrolled = [box.scrollLeft, box.scrollTop];
  const head = list.map((column, index) => {
    const sorted = view.sort === column.name;
    const button = element("button", { type: "button", onclick: () => sortBy(column) }, column.name + (sorted ? (view.down ? " ↓" : " ↑") : ""));
    return element("th", { class: (index ? "" : "first ") + (column.kind === "number" ? "number" : ""), "aria-sort": sorted ? (view.down ? "descending" : "ascending") : "none" }, button);
  });
  const rows = runs.map((run) => element("tr", {}, list.map((column, index) => {
    if (index) return element("td", { class: column.kind === "status" ? `status ${run.status}` : column.kind || "", title: column.kind === "status" ? statusWords(run) : "" }, column.text(run));
    const isShown = view.chosen.has(run.path);
    const tick = element("input", { type: "checkbox", checked: isShown, onchange: (event) => {
      const others = chosenRuns().filter((other) => other !== run);
      choose(event.target.checked ? [...others, run] : others);
    } });
    const problems = run.problems.length ? element("span", { class: "warn", title: run.problems.join("\n") }, " ⚠") : null;
    return element("td", { class: "first" }, element("label", { class: "run", title: run.path }, tick, isShown ? swatch(colourOf(run), dashOf(run)) : null, element("span", {}, broken(run.name), problems)));
  })));
  box.replaceChildren(element("table", {}, element("thead", {}, element("tr", {}, head)), element("tbody", {}, rows)));
  [box.scrollLeft, box.scrollTop] = scrolled;
  $("chosen").textContent = `${chosenRuns().length} of ${data.runs.length} shown` + (runs.length < data.runs.length ? `, ${plural(runs.length, "row")} match` : "");
  view.rows = runs;
}
function sortBy(column) {
  if (view.sort === column.name) view.down = !view.down;
  else { view.sort = column.name; view.down = Boolean(column.downFirst); }
  showRuns();
}
function showChoices() {
  const buttons = [];
  const add = (text, runs) => buttons.push(element("button", { type: "button", onclick: () => choose(runs()) }, text));
  if (data.runs.length > 5) {
    if (canRank()) add("best 5", () => ranked().slice(0, 5));
    add("newest 5", () => newest().slice(0, 5));
  }
  if (data.runs.length > 1) { add("all rows", () => view.rows); add("none", () => []); }
  $("choose").replaceChildren(...buttons);
}
function showLegend() {
  const runs = chosenRuns();
  $("legend").hidden = data.runs.length === 1;
  $("legend").replaceChildren(...(runs.length ? runs.map((run) => element("span", { title: run.path }, swatch(colourOf(run), dashOf(run)), run.name)) : [element("span", { class: "quiet" }, "No run is chosen: tick some above.")]));
}

// ---- curves ---------------------------------------------------------------------------------------------------------
function interpolate(points, column, step) {
  // points rise by step; two of one step are a pause, of which the first is meant
  let low = 0, high = points.length - 1;
  if (high < 0) return null;
  if (step <= points[0][0]) return points[0][column];
  if (step >= points[high][0]) return points[high][column];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle; else high = middle;
  }
  const [one, other] = [points[low], points[high]];
  return one[column] + ((other[column] - one[column]) * (step - one[0])) / Math.max(other[0] - one[0], 1e-9);
}
const localTime = (seconds) => (seconds === null ? null : seconds * 1000 - new Date(seconds * 1000).getTimezoneOffset() * 60000);
function placed(run, steps, unit) {
  if (view.axis === "step") return steps;
  if (view.axis === "epoch") return steps.map((step) => interpolate(run.epochs, 1, step));
  if (view.axis === "time") return steps.map((step) => { const at = interpolate(run.clock, 1, step); return at === null ? null : at / unit; });
  return steps.map((step) => localTime(interpolate(run.clock, 2, step)));
}
function timeUnit() {
  const longest = Math.max(0, ...chosenRuns().map((run) => run.worked || 0));
  return longest < 180 ? [1, "seconds"] : longest < 3 * 3600 ? [60, "minutes"] : [3600, "hours"];
}

function smoothed(values, weight) {
  if (!weight) return values;
  let sum = 0, norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

const family = (name) => name.replace(/^(train|training|val|valid|validation|test)[_\/]/, "").replace(/_(step|epoch)$/, "");
function seriesOf(name) {
  if (/^(val|valid|validation)[_\/]/.test(name)) return "dash";
  return /_step$/.test(name) ? "dot" : "solid";
}
function nameOrder(one, other) {
  const weight = (name) => (/loss/i.test(name) ? 0 : 2) + (/^val/.test(name) ? 0 : 1);
  return weight(one) - weight(other) || one.localeCompare(other, "en", { numeric: true });
}

function isCurve(name) {
  return chosenRuns().some((run) => run.curves[name] && (run.curves[name].x.length > 1 || run.curves[name].bad_count));
}
function allNames() {
  const names = new Set();
  for (const run of chosenRuns()) for (const name of Object.keys(run.curves)) names.add(name);
  return [...names].sort(nameOrder);
}
function plannedCharts() {
  const together = view.together ?? chosenRuns().length <= 3;
  const wanted = view.names.toLowerCase();
  const plan = { curves: [], rates: [], pace: [] };
  const groups = new Map();
  for (const name of allNames().filter(isCurve)) {
    if (RATE.test(name)) { plan.rates.push({ title: name, names: [name] }); continue; }
    if (PACE.test(name)) { plan.pace.push({ title: name, names: [name] }); continue; }
    if (wanted && !name.toLowerCase().includes(wanted)) continue;
    const key = together ? family(name) : name;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(name);
  }
  for (const [title, names] of groups) plan.curves.push({ title: names.length === 1 ? names[0] : title, names });
  if (chosenRuns().some((run) => run.clock.length > 8)) plan.pace.push({ title: "steps a second, of all time worked", names: [], made: stepPace });
  if (chosenRuns().some((run) => run.log.pace.length > 1)) {
    plan.pace.push({ title: "samples a second, as train.log tells", names: [], made: (run) => logPace(run, 1) });
    plan.pace.push({ title: "share of the time waiting for data, as train.log tells", names: [], made: (run) => logPace(run, 2) });
  }
  if (chosenRuns().some((run) => run.log.epochs.length > 1)) plan.pace.push({ title: "seconds an epoch took, as train.log tells", names: [], made: epochSeconds });
  return plan;
}
function stepPace(run) {
  const most = 400, every = Math.max(1, Math.floor(run.clock.length / most)), x = [], y = [];
  let before = run.clock[0];
  for (let index = 1; index < run.clock.length; index += every) {
    const point = run.clock[index], seconds = point[1] - before[1];
    if (seconds >= 0.2 && point[0] > before[0]) { x.push(point[0]); y.push((point[0] - before[0]) / seconds); before = point; }
    else if (point[0] === before[0]) before = point; // a pause
  }
  return { x, y, bad: [], bad_count: 0, per: 1 };
}
const stepAt = (run, epoch) => interpolate(run.epochs.map(([step, done]) => [done, step]), 1, epoch);
const logPace = (run, column) => ({ x: run.log.pace.map((point) => stepAt(run, point[0])), y: run.log.pace.map((point) => point[column]), bad: [], bad_count: 0, per: 1 });
const epochSeconds = (run) => ({ x: run.log.epochs.map((point) => stepAt(run, point[0])), y: run.log.epochs.map((point) => point[1]), bad: [], bad_count: 0, per: 1 });

function theme() {
  const style = getComputedStyle(document.documentElement), get = (name) => style.getPropertyValue(name).trim();
  return { ink: get("--ink"), quiet: get("--quiet"), line: get("--line"), card: get("--card"), bad: get("--bad") };
}
const faint = (colour, share) => colour + Math.round(255 * share).toString(16).padStart(2, "0");

function tracesOf(chart, colours, weight) {
  const runs = chosenRuns(), [unit] = timeUnit(), traces = [], few = runs.length <= MANY;
  const bySeries = runs.length === 1;
  for (const run of runs) {
    const names = chart.made ? [chart.title] : chart.names;
    names.forEach((name, index) => {
      const curve = chart.made ? chart.made(run) : run.curves[name];
      if (!curve || !curve.x.length) return;
      if (["time", "date"].includes(view.axis) && !run.clock.length) return;
      const colour = bySeries ? COLOURS[index % COLOURS.length] : colourOf(run);
      const dash = bySeries ? "solid" : names.length > 1 ? seriesOf(name) : dashOf(run);
      const x = placed(run, curve.x, unit);
      const shown = names.length > 1 ? `${run.name} · ${name}` : bySeries ? name : run.name;
      const base = { x, type: "scatter", name: label(shown), line: { color: colour, width: runs.length > 12 ? 1.1 : 1.6, dash }, connectgaps: false };
      if (curve.per > 1 && few && !weight) {
        const edge = { width: 0.8, color: faint(colour, 0.4) }; // or a spike of one value would be too thin to see
        traces.push({ ...base, y: curve.lo, line: edge, hoverinfo: "skip", mode: "lines" });
        traces.push({ ...base, y: curve.hi, line: edge, hoverinfo: "skip", mode: "lines", fill: "tonexty", fillcolor: faint(colour, 0.18) });
      }
      if (weight && few) traces.push({ ...base, y: curve.y, line: { ...base.line, color: faint(colour, 0.28), width: 1 }, hoverinfo: "skip", mode: "lines" });
      const what = (curve.per > 1 ? `mean of ${curve.per} values` : "value") + (weight ? ", smoothed" : "");
      traces.push({
        ...base, y: smoothed(curve.y, weight), mode: curve.x.length === 1 || (curve.x.length <= 40 && runs.length <= 12) ? "lines+markers" : "lines", marker: { size: 4.5, color: colour },
        customdata: curve.x.map((step) => digits(Math.round(step))), hovertemplate: `<b>%{fullData.name}</b><br>step %{customdata}<br>${what} %{y:.5g}<extra></extra>`,
      });
      traces.push(...badTraces(run, name, curve, unit, colours));
      if (view.marks && name === run.monitor) traces.push(...scoreTraces(run, name, colour, unit, colours));
    });
    if (view.marks && few && !chart.made) traces.push(...checkpointTraces(run, unit, bySeries ? colours.quiet : colourOf(run)));
  }
  return traces;
}
function badTraces(run, name, curve, unit, colours) {
  if (!curve.bad.length) return [];
  const steps = curve.bad.map(([step]) => step), more = curve.bad_count > curve.bad.length ? `, the first ${curve.bad.length} are marked` : "";
  return [{
    x: placed(run, steps, unit), y: steps.map(() => 0.97), yaxis: "y2", mode: "markers", type: "scatter", cliponaxis: false, name: label(`${run.name} · ${name}`),
    marker: { symbol: "x", size: 7, color: colours.bad }, customdata: curve.bad.map(([step, word]) => [digits(step), label(word)]),
    hovertemplate: `<b>%{fullData.name}</b><br>%{customdata[1]} at step %{customdata[0]}<br>${curve.bad_count} not finite in all${more}<extra></extra>`,
  }];
}
const checkpointWords = (run, one) => [
  `${label(run.name)}: ${label(one.name)}`, one.pins.length ? `kept as ${label(one.pins.join(", "))}` : "held by no name",
  run.monitor && run.monitor in one.metrics ? `${label(run.monitor)} ${label(digits(one.metrics[run.monitor]))}` : "",
  one.healthy === false ? "not finite" : "", one.state === "unknown" ? "" : label(one.state),
].filter(Boolean).join("<br>");
function scoreTraces(run, name, colour, unit, colours) {
  const scored = run.checkpoints.filter((one) => one.step !== null && typeof one.metrics[name] === "number");
  const isBest = (one) => run.best && run.best.checkpoint === one.name;
  return [{
    x: placed(run, scored.map((one) => one.step), unit), y: scored.map((one) => one.metrics[name]), mode: "markers", type: "scatter",
    marker: { symbol: scored.map((one) => (isBest(one) ? "star" : "circle-open")), size: scored.map((one) => (isBest(one) ? 13 : 8)), color: colour, line: { width: scored.map((one) => (isBest(one) ? 1 : 2)), color: scored.map((one) => (isBest(one) ? colours.ink : colour)) } },
    text: scored.map((one) => checkpointWords(run, one)), hovertemplate: "%{text}<extra></extra>", name: "",
  }];
}
function checkpointTraces(run, unit, colour) {
  const saved = run.checkpoints.filter((one) => one.step !== null);
  return [{
    x: placed(run, saved.map((one) => one.step), unit), y: saved.map(() => 0.02), yaxis: "y2", mode: "markers", type: "scatter", cliponaxis: false,
    marker: { symbol: "triangle-up", size: 7, color: colour }, text: saved.map((one) => checkpointWords(run, one)), hovertemplate: "%{text}<extra></extra>", name: "",
  }];
}

// Where processes began and ended: a line each, and a mark above it that says what happened.
function eventsOf(run) {
  const events = [];
  run.sessions.forEach((session, index) => {
    const before = run.sessions[index - 1];
    if (before) {
      const lost = before.lost ? `, at least ${plural(before.lost, "step")} made again` : "";
      events.push({ step: session.from, worked: session.worked_from, at: session.began, killed: before.killed,
        text: `${label(run.name)}<br>${label(before.ended)}, at step ${before.to} or later${lost}<br>went on from ${session.went_on_from === null ? "its start" : label(session.went_on_from)}, ${date(session.began, true)}` });
    } else if (session.went_on_from !== null) {
      events.push({ step: session.from, worked: session.worked_from, at: session.began, killed: false, text: `${label(run.name)}<br>went on from ${label(session.went_on_from)}; nothing is told of what was before` });
    }
    if (index === run.sessions.length - 1 && session.killed) {
      events.push({ step: session.to, worked: session.worked_to, at: session.last, killed: true, text: `${label(run.name)}<br>${label(session.ended)}, at step ${session.to} or later` });
    }
  });
  return events;
}
function placeOfEvent(run, event, unit) {
  if (view.axis === "time") return event.worked / unit;
  if (view.axis === "date") return localTime(event.at);
  return placed(run, [event.step], unit)[0];
}
function eventParts(colours) {
  const runs = chosenRuns(), [unit] = timeUnit(), shapes = [], traces = [];
  if (!view.marks || runs.length > MANY) return [shapes, traces];
  for (const run of runs) {
    const events = eventsOf(run), places = events.map((event) => placeOfEvent(run, event, unit));
    if (!events.length) continue;
    const colour = (event) => (event.killed ? colours.bad : colours.quiet);
    events.forEach((event, index) => shapes.push({ type: "line", xref: "x", yref: "paper", x0: places[index], x1: places[index], y0: 0, y1: 1, line: { color: runs.length > 1 ? colourOf(run) : colour(event), width: 1, dash: "dot" }, layer: "below" }));
    traces.push({
      x: places, y: events.map(() => 0.96), yaxis: "y2", mode: "markers", type: "scatter", cliponaxis: false, name: "",
      marker: { symbol: events.map((event) => (event.killed ? "triangle-down" : "triangle-right")), size: 10, color: events.map(colour) },
      text: events.map((event) => event.text), hovertemplate: "%{text}<extra></extra>",
    });
  }
  return [shapes, traces];
}

function layoutOf(colours, shapes, isLog) {
  const axis = { gridcolor: colours.line, zerolinecolor: colours.line, linecolor: colours.line, tickfont: { size: 11 } };
  const title = { step: "step", epoch: "epoch", time: `${timeUnit()[1]} worked on the run`, date: "" }[view.axis];
  return {
    margin: { l: 50, r: 14, t: 8, b: 38 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: faint(colours.quiet, 0.55), activecolor: colours.ink },
    font: { color: colours.ink, size: 11, family: "system-ui, 'DejaVu Sans', sans-serif" }, shapes,
    hoverlabel: { bgcolor: colours.card, bordercolor: colours.line, font: { color: colours.ink, size: 12 }, align: "left", namelength: -1 },
    xaxis: { ...axis, title: { text: title, font: { size: 11, color: colours.quiet }, standoff: 6 }, type: view.axis === "date" ? "date" : "linear", ...(view.range ? { range: [...view.range], autorange: false } : { autorange: true }) },
    yaxis: { ...axis, type: isLog ? "log" : "linear", automargin: true, exponentformat: "power" },
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
  };
}

const charts = new Map(); // key -> {box, plot, chart, isDrawn, isSeen}
const watcher = new IntersectionObserver((seen) => {
  for (const one of seen) {
    const held = [...charts.values()].find((other) => other.plot === one.target);
    if (held) { held.isSeen = one.isIntersecting; if (held.isSeen && !held.isDrawn) draw(held); }
  }
}, { rootMargin: "400px" });

// Plotly fits the vertical axis to all values, and to a constant with 1 on both sides whatever its size; here it is
// fitted to those within the zoom.
function verticalRange(traces, isLog) {
  const [from, to] = (view.range || [-Infinity, Infinity]).map((at) => (typeof at === "string" ? Date.parse(`${at.replace(" ", "T")}Z`) : at));
  let least = Infinity, most = -Infinity;
  for (const trace of traces) {
    if (trace.yaxis === "y2") continue;
    trace.y.forEach((value, index) => {
      const at = trace.x[index];
      if (typeof value !== "number" || at === null || at < from || at > to || (isLog && value <= 0)) return;
      least = Math.min(least, value);
      most = Math.max(most, value);
    });
  }
  if (least > most) return {};
  const decades = isLog ? Math.log10(most / least) : 0;
  const ticks = isLog ? { dtick: decades > 2.5 ? 1 : decades > 0.6 ? "D2" : "D1", tickformat: "~g" } : {};
  if (least === most && least !== 0 && !isLog) return { range: least > 0 ? [0, 2 * least] : [2 * least, 0], autorange: false };
  if (!view.range || least === most) return ticks;
  if (isLog) [least, most] = [Math.log10(least), Math.log10(most)];
  const margin = 0.06 * (most - least);
  return { ...ticks, range: [least - margin, most + margin], autorange: false };
}

function draw(held) {
  held.isDrawn = true;
  const colours = theme(), [shapes, events] = eventParts(colours);
  const isPace = held.section === "pace";
  const weight = held.section === "rates" ? 0 : view.smooth; // a schedule has no noise
  const traces = [...tracesOf(held.chart, colours, weight), ...events];
  const layout = layoutOf(colours, shapes, view.log && !isPace);
  Object.assign(layout.yaxis, verticalRange(traces, layout.yaxis.type === "log"));
  Plotly.react(held.plot, traces, layout, {
    displaylogo: false, responsive: true, displayModeBar: "hover", doubleClick: "reset",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], toImageButtonOptions: { filename: held.chart.title.replace(/[^\w.-]+/g, "_"), scale: 2 },
  });
  if (!held.hears) {
    held.hears = true;
    held.plot.on("plotly_relayout", (change) => zoomed(held, change));
  }
}
function zoomed(source, change) {
  const range = change["xaxis.range"] || ("xaxis.range[0]" in change ? [change["xaxis.range[0]"], change["xaxis.range[1]"]] : null);
  if (!range && !change["xaxis.autorange"]) return;
  view.range = range;
  for (const held of charts.values()) {
    if (held === source && "yaxis.range[0]" in change) continue; // a box was drawn in it
    held.isDrawn = false;
    if (held.isSeen) draw(held);
  }
}

function keyOf(chart) {
  const runs = chosenRuns();
  if (chart.made || chart.names.length < 2) return [];
  if (runs.length === 1) return chart.names.map((name, index) => element("span", {}, swatch(COLOURS[index % COLOURS.length]), name));
  return chart.names.map((name) => element("span", {}, swatch(theme().quiet, seriesOf(name)), name));
}
function showCharts() {
  const plan = plannedCharts(), kept = new Set();
  for (const [section, list] of Object.entries(plan)) {
    const boxes = list.map((chart) => {
      const key = `${section} ${chart.title}`;
      kept.add(key);
      if (!charts.has(key)) {
        const plot = element("div", { class: "plot" });
        const words = element("div", { class: "key" });
        charts.set(key, { plot, words, box: element("div", { class: "chart" }, element("h3", {}, chart.title), words, plot), section });
        watcher.observe(plot);
      }
      const held = charts.get(key);
      held.chart = chart;
      held.words.replaceChildren(...keyOf(chart));
      held.isDrawn = false;
      return held.box;
    });
    const grid = $(`${section}-grid`);
    if (boxes.length !== grid.children.length || boxes.some((box, index) => grid.children[index] !== box)) grid.replaceChildren(...boxes);
  }
  for (const [key, held] of charts) if (!kept.has(key)) { watcher.unobserve(held.plot); Plotly.purge(held.plot); charts.delete(key); }
  for (const held of charts.values()) if (held.isSeen) draw(held);
  showNotes(plan);
}
function showNotes(plan) {
  const runs = chosenRuns(), notes = [];
  const untimed = runs.filter((run) => !run.clock.length);
  if (["time", "date"].includes(view.axis) && untimed.length) notes.push(`No times are known of ${untimed.map((run) => run.name).join(", ")}: no journal.jsonl.`);
  if (runs.some((run) => Object.values(run.curves).some((curve) => curve.per > 1))) notes.push("Long curves are drawn thinned: a line of means, and a band from the smallest to the largest value.");
  if (runs.length > MANY && view.marks) notes.push(`Checkpoints, kills and resumes are marked for at most ${MANY} runs; here the scores of checkpoints alone.`);
  if (!plan.curves.length) notes.push(runs.length ? (view.names ? "No metric's name holds the filter." : "Nothing was logged yet that makes a curve.") : "Choose runs above.");
  else notes.push("Drag to zoom all charts, double-click to zoom out. ★ best, ○ its score when a checkpoint was kept, ▴ checkpoint, ▾ kill, ▸ resume, ✕ not a finite value.");
  $("curves-note").textContent = notes.join(" ");
  $("rates-note").textContent = plan.rates.length || !runs.length ? "" : "No learning rate was logged: add the callback LRMonitor.";
  $("pace-note").textContent = !runs.length ? "" : runs.some((run) => Object.keys(run.curves).some((name) => PACE.test(name))) ? "" : "The callback ThroughputMonitor logs samples a second and the share of the time that waits for data.";
}

// ---- tables ---------------------------------------------------------------------------------------------------------
function tableOf(head, rows, numbers) {
  const kind = (index) => ((numbers || []).includes(index) ? "number" : "");
  return element("table", {}, element("thead", {}, element("tr", {}, head.map((text, index) => element("th", { class: kind(index) }, text)))),
    element("tbody", {}, rows.map((row) => element("tr", {}, row.map((cell, index) => (cell instanceof Element && cell.tagName === "TD" ? cell : element("td", { class: kind(index) }, cell)))))));
}
function forEachRun(box, made) {
  const runs = chosenRuns(), known = new Map([...box.children].map((child) => [child.dataset.run, child.open]));
  box.replaceChildren(...runs.map((run) => {
    const [summary, ...content] = made(run);
    if (!content.length) return null;
    const open = known.has(run.path) ? known.get(run.path) : runs.length <= 3;
    const details = element("details", { open }, element("summary", {}, element("b", {}, run.name), summary ? ` ${summary}` : ""), ...content);
    details.dataset.run = run.path;
    return details;
  }).filter(Boolean));
  box.parentElement.hidden = !box.children.length;
}

function showOnce() {
  const runs = chosenRuns(), names = allNames().filter((name) => !isCurve(name));
  $("once").hidden = !names.length;
  $("once-table").replaceChildren(tableOf(["name", ...runs.map((run) => run.name)], names.map((name) => [name, ...runs.map((run) => digits(run.last[name]))]), runs.map((_, index) => index + 1)));
}
function showCheckpoints() {
  forEachRun($("checkpoints-tables"), (run) => {
    if (!run.checkpoints.length) return [""];
    const names = [...new Set(run.checkpoints.flatMap((one) => Object.keys(one.metrics)))].filter((name, _, all) => !name.endsWith("_step") && !(name.endsWith("_epoch") && all.includes(name.slice(0, -6))) && !PACE.test(name)).sort((one, other) => (other === run.monitor) - (one === run.monitor) || nameOrder(one, other)).slice(0, 8);
    const isBest = (one) => run.best && run.best.checkpoint === one.name;
    const rows = run.checkpoints.map((one) => [
      element("td", { class: "short" }, (isBest(one) ? "★ " : "") + one.name), digits(one.epoch), one.pins.join(", "), ...names.map((name) => digits(one.metrics[name])), bytes(one.bytes), date(one.created),
      [one.state === "unknown" ? "" : one.state === "damaged" ? "DAMAGED" : one.state, one.healthy === false ? "not finite" : "", one.weights_only ? "weights only" : ""].filter(Boolean).join(", "),
    ]);
    const total = run.checkpoints.reduce((sum, one) => sum + (one.bytes || 0), 0);
    return [`${plural(run.checkpoints.length, "checkpoint")}, ${bytes(total)}`, element("div", { class: "scroll" }, tableOf(["checkpoint", "epoch", "kept as", ...names, "size", "saved", ""], rows, [1, ...names.map((_, index) => index + 3), names.length + 3])),
      element("p", { class: "quiet" }, "What their manifests say. paddlelite ckpt verify reads every byte.")];
  });
}
function showSessions() {
  forEachRun($("sessions-tables"), (run) => {
    if (!run.sessions.length) return run.began ? ["", element("p", { class: "quiet" }, `Began ${date(run.began)}; no journal.jsonl tells of its processes.`)] : [""];
    const rows = run.sessions.map((one) => [
      element("td", { class: "short" }, date(one.began, true)), `${one.process} on ${one.host}`, one.went_on_from === null ? "afresh" : one.went_on_from, `${one.from} to ${one.to}`, duration(one.last - one.began),
      element("td", { class: one.killed ? "killed" : "" }, one.ended), one.lost ? `≥ ${plural(one.lost, "step")}` : "", one.changed.join("\n"),
    ]);
    const lost = run.sessions.reduce((sum, one) => sum + one.lost, 0);
    const summary = [plural(run.sessions.length, "process").replace("processs", "processes"), kills(run) ? plural(kills(run), "kill") : "", lost ? `at least ${plural(lost, "step")} made again` : "", `${duration(run.worked)} worked`].filter(Boolean).join(", ");
    return [summary, element("div", { class: "scroll" }, tableOf(["began", "process", "from", "steps", "worked", "end", "made again", "changed"], rows)), element("p", { class: "quiet" }, run.sessions[run.sessions.length - 1].command || "")];
  });
}
function showSettings() {
  const runs = chosenRuns(), names = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  const differs = (name) => new Set(runs.map((run) => run.settings[name])).size > 1;
  const some = names.some(differs), only = view.differs ?? some;
  $("differs").checked = only;
  $("differs").disabled = !some;
  const weight = (name) => ["hyper_parameters.", "trainer.", "environment."].findIndex((prefix) => name.startsWith(prefix));
  const shown = names.filter((name) => !only || !some || differs(name)).sort((one, other) => weight(one) - weight(other));
  const rows = shown.map((name) => {
    const values = runs.map((run) => run.settings[name]);
    const row = element("tr", { class: differs(name) || runs.length === 1 ? "" : "same" }, element("td", { class: "first" }, settingName(name)),
      element("td", { class: "quiet" }, name.startsWith("hyper") ? "hyper-parameter" : name.split(".")[0]), values.map((value) => element("td", { class: differs(name) ? "differs" : "" }, value ?? "–")));
    return row;
  });
  const head = element("tr", {}, element("th", { class: "first" }, "name"), element("th", {}, "of"), runs.map((run) => element("th", {}, broken(run.name))));
  $("settings-table").replaceChildren(rows.length ? element("table", {}, element("thead", {}, head), element("tbody", {}, rows)) : element("p", { class: "quiet" }, "Nothing is recorded."));
}
function showConfigs() {
  $("configs").replaceChildren(...chosenRuns().filter((run) => run.config).map((run) => element("details", {}, element("summary", {}, element("b", {}, run.name), " config.yaml"), element("pre", {}, run.config))));
}
function showProfiles() {
  const box = $("profiles"), parts = [];
  for (const run of chosenRuns()) {
    const profile = run.profiles[run.profiles.length - 1];
    if (!profile) continue;
    const most = Math.max(...profile.rows.map((row) => row[2]), 1), bars = profile.rows.filter((row) => row[2] >= 0.5).slice(0, 14).map(([part, seconds, share, calls]) => element("div", { class: "part", title: calls ? plural(calls, "call") : "" }, element("span", {}, broken(part)), element("i", { style: { width: `${(100 * share) / most}%` } }), element("span", {}, `${duration(seconds)}  ${share} %`)));
    parts.push(element("div", { class: "parts" }, element("h3", {}, run.name), element("p", { class: "quiet" }, [profile.heading, ...profile.notes, "Parts of less than 0.5 % stand in profile.txt."].join(" ")), bars));
  }
  if (!parts.length && chosenRuns().length) parts.push(element("p", { class: "quiet" }, "No profile.txt: Trainer(profiler=\"simple\") tells how the time divides among data, step, validation, callbacks and saves."));
  box.replaceChildren(...parts);
}
function showTold() {
  forEachRun($("told-all"), (run) => {
    const content = [];
    if (run.problems.length) content.push(element("p", { class: "warn" }, "This report is not whole:"), element("ul", {}, run.problems.map((text) => element("li", {}, text))));
    if (run.reason && run.status !== "finished") content.push(element("p", { class: run.status }, `${run.status}: ${run.reason}`));
    if (run.log.warnings.length) content.push(element("ul", {}, run.log.warnings.map(([text, times]) => element("li", {}, text + (times > 1 ? `  (${times} times)` : "")))));
    if (run.log.error) content.push(element("pre", {}, run.log.error));
    if (run.log.tail) content.push(element("details", {}, element("summary", {}, "the end of train.log"), element("pre", {}, run.log.tail)));
    const summary = [run.log.warnings.length ? plural(run.log.warnings.length, "warning") : "no warnings", run.log.error ? "an error" : ""].filter(Boolean).join(", ");
    return [summary, ...content];
  });
}

// ---- the whole page -------------------------------------------------------------------------------------------------
function showControls() {
  $("axis").replaceChildren(...AXES.map(([key, text]) => element("button", { type: "button", "aria-pressed": String(view.axis === key), onclick: () => { view.axis = key; view.range = null; showControls(); showCharts(); } }, text)));
  $("together").checked = view.together ?? chosenRuns().length <= 3;
}
function showAll() {
  const one = data.runs.length === 1;
  $("title").textContent = one ? data.runs[0].name : `${data.runs.length} runs`;
  $("made").textContent = [one ? data.runs[0].path : "", one ? statusWords(data.runs[0]) : "", LIVE_SECONDS ? `live, looked at ${date(data.made, true)}` : `made ${date(data.made)}`].filter(Boolean).join("  ·  ");
  showRuns(); showChoices(); showLegend(); showControls(); showCharts(); showOnce(); showCheckpoints(); showSessions(); showSettings(); showConfigs(); showProfiles(); showTold();
}
let waiting = null;
const soon = (work) => { clearTimeout(waiting); waiting = setTimeout(work, 120); };
$("filter").addEventListener("input", (event) => { view.filter = event.target.value; soon(showRuns); });
$("names").addEventListener("input", (event) => { view.names = event.target.value; soon(showCharts); });
$("smooth").addEventListener("input", (event) => { view.smooth = Number(event.target.value); $("smooth-value").textContent = event.target.value; soon(showCharts); });
$("log").addEventListener("change", (event) => { view.log = event.target.checked; showCharts(); });
$("together").addEventListener("change", (event) => { view.together = event.target.checked; showCharts(); });
$("marks").addEventListener("change", (event) => { view.marks = event.target.checked; showCharts(); });
$("differs").addEventListener("change", (event) => { view.differs = event.target.checked; showSettings(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showAll);

async function ask() {
  let wait = LIVE_SECONDS;
  try {
    const answer = await fetch("data", { cache: "no-store", headers: etag ? { "If-None-Match": etag } : {} });
    if (answer.status === 200) {
      etag = answer.headers.get("ETag");
      data = await answer.json();
      if (view.isDefault) chooseByDefault();
      showAll();
    } else if (answer.status !== 304) throw new Error(await answer.text());
    else $("made").textContent = $("made").textContent.replace(/(live, ).*$/, `$1nothing new since ${date(data.made, true)}`);
    wait = Math.max(wait, Number(answer.headers.get("X-Seconds") || 0));
  } catch (error) {
    $("made").textContent = `no longer live: the server does not answer (${error.message}); what is shown is of ${date(data.made, true)}`;
  }
  setTimeout(ask, 1000 * wait);
}

document.querySelector("main").hidden = false;
chooseByDefault();
showAll();
if (LIVE_SECONDS) setTimeout(ask, 1000 * LIVE_SECONDS);
