// The sections that answer from the whole table: curves over an axis, and the map of checkpoint by task.
// The table is columns of codes with labels, and of numbers; what is chosen are row numbers.

const T = { rows: 0, columns: {}, list: [] };
const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };
async function openTable() {
  const head = page.table, buffer = await unpack("table-data");
  T.rows = head.rows;
  T.list = head.columns.map((column) => {
    const values = new TYPES[column.type](buffer, column.start, head.rows);
    return column.labels ? { ...column, codes: values } : { ...column, values };
  });
  T.columns = Object.fromEntries(T.list.map((column) => [column.name, column]));
}
const cell = (column, row) => (column.codes ? column.labels[column.codes[row]] : column.values[row]);
const at = (name, row) => cell(T.columns[name], row);
const stateOf = (row) => (at("state", row) === "done" ? "no value" : [at("state", row), at("reason", row)].filter((t) => t !== null).join(": "));
const hasValue = (row) => Number.isFinite(T.columns.value.values[row]);
const NOT_AXES = ["stage", "job", "task", "metric", "value", "stderr", "n", "state", "reason", "fingerprint"];
const axes = () => T.list.filter((column) => !NOT_AXES.includes(column.name));
const several = (column) => column.codes && column.labels.length > 1;
const show = (label) => label ?? "–";

// ---- intervals, as toolkit/analysis/stats.py has them
const Z = 1.959963984540054;
function intervalOf(row) {
  const value = T.columns.value.values[row], stderr = T.columns.stderr.values[row], n = Number(at("n", row) ?? NaN);
  const items = value * n, metric = at("metric", row);
  if (isShare(metric) && n > 0 && value >= 0 && value <= 1 && Math.abs(items - Math.round(items)) < 1e-6 * Math.max(n, 1)) {
    const scale = 1 + Z ** 2 / n, middle = (value + Z ** 2 / (2 * n)) / scale;
    const half = (Z / scale) * Math.sqrt((value * (1 - value)) / n + Z ** 2 / (4 * n ** 2));
    return { low: value === 0 ? 0 : middle - half, high: value === 1 ? 1 : middle + half, how: `Wilson, n = ${n}` };
  }
  return Number.isFinite(stderr) ? { low: value - Z * stderr, high: value + Z * stderr, how: "normal" } : { low: NaN, high: NaN, how: "" };
}
function meanOf(values) {
  const n = values.length, mean = values.reduce((a, b) => a + b, 0) / n;
  const sd = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1));
  const half = (page.student[Math.min(n - 2, page.student.length - 1)] * sd) / Math.sqrt(n);
  return { value: mean, low: mean - half, high: mean + half, how: `Student's t, mean of ${n} runs` };
}

// ---- what is chosen: a code for each column that is fixed, the axis, and scores or changes
function chooser(place, state, columns, changed) {
  return columns.map((column) => choice(
    column.name, [["", "all"], ...column.labels.map((label, code) => [code, show(label)])], state.fixed.get(column.name) ?? "",
    (value) => { if (value === "") state.fixed.delete(column.name); else state.fixed.set(column.name, Number(value)); changed(); },
  ));
}
function chosenRows(state) {
  const tests = [...state.fixed].map(([name, code]) => [T.columns[name].codes, code]);
  const rows = [];
  for (let row = 0; row < T.rows; row++) if (tests.every(([codes, code]) => codes[row] === code)) rows.push(row);
  return rows;
}
// Gain over the base: the base row has the same coordinates on every axis that base rows have.
const bases = { keys: null, found: null };
function baseOf(row) {
  const { axis, label } = page.base;
  if (!bases.found) {
    const by = T.columns[axis], wanted = by.labels.indexOf(label), rows = [];
    for (let r = 0; r < T.rows; r++) if (by.codes[r] === wanted && hasValue(r)) rows.push(r);
    bases.keys = [...axes().filter((c) => c.name !== axis && rows.some((r) => cell(c, r) !== null)), T.columns.task, T.columns.metric];
    bases.found = new Map(rows.map((r) => [bases.keys.map((c) => c.codes[r]).join(), r]));
  }
  return bases.found.get(bases.keys.map((c) => c.codes[row]).join());
}
const isBase = (row) => at(page.base.axis, row) === page.base.label;
function measured(row, what) {
  const value = T.columns.value.values[row];
  if (what === "score") return hasValue(row) ? { value, ...intervalOf(row) } : null;
  const below = baseOf(row);
  if (below === undefined || isBase(row) || !hasValue(row)) return null;
  const base = T.columns.value.values[below], gain = value - base;
  if (what === "relative") return base ? { value: gain / base, low: NaN, high: NaN, how: `${rounded(value)} from ${rounded(base)}` } : null;
  const half = Z * Math.hypot(T.columns.stderr.values[row], T.columns.stderr.values[below]);
  return { value: gain, low: gain - half, high: gain + half, how: `${rounded(value)} from ${rounded(base)}; taken as independent` };
}
const MEASURES = { score: "scores", gain: "change by tuning", relative: "relative change" };
function measureChoice(state, changed) {
  return page.base ? [choice("show", Object.entries(MEASURES), state.what, (value) => { state.what = value; changed(); })] : [];
}
function pointOf(place, rows, what, heads) {
  const found = rows.map((row) => [row, measured(row, what)]), numbers = found.filter(([, m]) => m);
  if (!numbers.length) {
    const state = hasValue(rows[0]) ? "no value: no base" : stateOf(rows[0]);
    return { at: place, value: null, state, said: [state, ...heads], row: rows[0] };
  }
  const m = numbers.length > 1 ? meanOf(numbers.map(([, each]) => each.value)) : numbers[0][1];
  const bounds = known(m.low) ? `${rounded(m.value)} [${rounded(m.low)}, ${rounded(m.high)}]` : rounded(m.value);
  return { at: place, value: m.value, low: m.low, high: m.high, said: [bounds, m.how, ...heads].filter(Boolean), row: numbers[0][0] };
}

// ---- curves: a panel for each task and metric, a line for each combination of the other coordinates
const curves = { over: null, scale: null, what: "score", fixed: new Map(), shown: 12 };
const AT_ONCE = 12, LINES = 40;
function curvePanels() {
  const over = T.columns[curves.over], { task, metric } = T.columns, groups = new Map();
  for (const row of chosenRows(curves)) {
    if (metric.labels[metric.codes[row]] === null || (curves.what !== "score" && isBase(row))) continue;
    const key = task.codes[row] * metric.labels.length + metric.codes[row];
    const group = groups.get(key) ?? groups.set(key, { rows: [], places: new Set() }).get(key);
    group.rows.push(row);
    if (over.labels[over.codes[row]] !== null) group.places.add(over.codes[row]);
  }
  const order = ([a], [b]) => rank(a) - rank(b) || a - b, rank = (key) => (task.labels[Math.floor(key / metric.labels.length)] === null ? 1 : 0);
  return [...groups].filter(([, group]) => group.places.size > 1).sort(order).map(([, group]) => group.rows);
}
function curveChart(rows) {
  const over = T.columns[curves.over], first = rows[0];
  const keys = [T.columns.stage, ...axes().filter((c) => c !== over && c.name !== "seed" && !page.follows[over.name]?.includes(c.name))].filter((c) => rows.some((row) => c.codes[row] !== c.codes[first]));
  const lines = new Map();
  for (const row of rows) {
    const key = keys.map((c) => c.codes[row]), text = key.join();
    const line = lines.get(text) ?? lines.set(text, { key, places: new Map() }).get(text);
    const place = over.labels[over.codes[row]] === null ? -1 : over.codes[row];
    (line.places.get(place) ?? line.places.set(place, []).get(place)).push(row);
  }
  const sorted = [...lines.values()].sort((a, b) => a.key.findIndex((code, i) => code !== b.key[i]) >= 0 ? a.key.map((code, i) => code - b.key[i]).find(Boolean) : 0);
  const telling = tellingOf(sorted.map((line) => line.key));
  const series = sorted.slice(0, LINES).map(({ key, places }) => {
    const heads = keys.map((c, i) => `${c.name}: ${show(c.labels[key[i]])}`);
    const points = [...places].sort(([a], [b]) => a - b).map(([place, some]) => pointOf(place, some, curves.what, place < 0 ? heads : [`${over.name} ${show(over.labels[place])}`, ...heads]));
    const words = telling.map((i) => [keys[i], keys[i].labels[key[i]]]).filter(([, label]) => label !== null);
    return { key, points, name: words.map(([c, label]) => (c.numeric ? `${c.name} ${label}` : label)).join(" · ") || plain(at("metric", first)) };
  });
  const task = at("task", first), metric = plain(at("metric", first));
  const chance = curves.what === "score" && isShare(metric) ? page.chance[task] : null;
  return { kind: "lines", axis: over.name, scales: page.axes[over.name], series, chance, change: curves.what !== "score", left: sorted.length - series.length };
}
// The places of a key that a name needs: one that another decides (the learning rate of a recipe) says nothing more.
function tellingOf(keys) {
  const decides = (i, j) => new Set(keys.map((key) => `${key[i]} ${key[j]}`)).size === new Set(keys.map((key) => key[i])).size;
  const kept = [];
  for (let j = 0; j < (keys[0]?.length ?? 0); j++) if (!kept.some((i) => decides(i, j))) kept.push(j);
  return kept;
}
const isShare = (metric) => page.proportions.includes(plain(metric).split(/[,/]/)[0]);
const titleOf = (row) => `${at("task", row) ?? at("stage", row)} · ${at("metric", row)}`;
function showCurves() {
  const panels = curvePanels();
  $("curve-panels").replaceChildren(...panels.slice(0, curves.shown).map((rows, i) => panel(`curves-${i}`, titleOf(rows[0]), () => {
    const chart = curveChart(rows);
    draw(`curves-${i}`, chart, curves.scale);
    if (chart.left) $(`curves-${i}`).parentElement.append(make("p", { className: "note", textContent: `${chart.left} more lines are left out: choose above` }));
  })));
  const more = make("button", { type: "button", textContent: `Show ${Math.min(AT_ONCE, panels.length - curves.shown)} more of ${panels.length} panels` });
  more.addEventListener("click", () => { curves.shown += AT_ONCE; showCurves(); });
  $("curve-more").replaceChildren(...(panels.length > curves.shown ? [more] : panels.length ? [] : [make("p", { className: "note", textContent: "Nothing of this was measured at two places of the axis: choose otherwise." })]));
}
function curveControls() {
  const chosen = () => { curves.shown = AT_ONCE; showCurves(); };
  const over = axes().filter((c) => several(c) && page.axes[c.name]);
  const scales = Object.keys(page.axes[curves.over]);
  if (!scales.includes(curves.scale)) curves.scale = scales[0];
  $("curve-controls").replaceChildren(
    ...(over.length > 1 ? [choice("over", over.map((c) => [c.name, c.name]), curves.over, (name) => { curves.over = name; curves.fixed.delete(name); curveControls(); chosen(); })] : []),
    choice("scale", scales.map((name) => [name, name]), curves.scale, (name) => {
      curves.scale = name;
      for (const id of charts.keys()) if (id.startsWith("curves-") && $(id)) rescale(id, name);
    }),
    ...measureChoice(curves, chosen),
    ...chooser("curve-controls", curves, [T.columns.task, T.columns.metric, T.columns.stage, ...axes().filter((c) => c.name !== curves.over && !page.follows[curves.over].includes(c.name))].filter(several), chosen),
  );
}
starters.curves = () => {
  curves.over = page.over;
  curveControls();
  showCurves();
};

// ---- heat map: checkpoint by task
const heat = { rows: null, cols: "task", what: "score", fixed: new Map() };
function showHeat() {
  const over = T.columns[heat.rows], across = T.columns[heat.cols];
  const rows = chosenRows(heat).filter((row) => at("metric", row) !== null && cell(over, row) !== null && cell(across, row) !== null && !(heat.what !== "score" && isBase(row)));
  const places = new Map();
  for (const row of rows) {
    const key = over.codes[row] * across.labels.length + across.codes[row];
    (places.get(key) ?? places.set(key, []).get(key)).push(row);
  }
  // several measurements in one place are no number: they differ in what is not chosen yet (seeds are averaged)
  const differ = [T.columns.stage, ...axes(), T.columns.task].find((c) => c !== over && c !== across && c.name !== "seed" && !page.follows[over.name]?.includes(c.name) && [...places.values()].some((some) => some.some((row) => c.codes[row] !== c.codes[some[0]])));
  const note = $("heat-note");
  note.textContent = !rows.length ? "Nothing of this was measured." : differ ? `Several measurements would stand in one place: choose one ${differ.name}.` : "";
  $("heat-panels").replaceChildren();
  if (!rows.length || differ) return;
  const used = (column) => [...new Set(rows.map((row) => column.codes[row]))].sort((a, b) => a - b);
  const columns = used(across), lines = used(over);
  const series = lines.map((code) => ({
    key: [code], name: show(over.labels[code]),
    points: columns.map((c, j) => [places.get(code * across.labels.length + c), j, c]).filter(([some]) => some).map(([some, j, c]) => pointOf(j, some, heat.what, [`${over.name} ${show(over.labels[code])}`, `${across.name} ${show(across.labels[c])}`])),
  }));
  const even = { even: { x: columns.map((_, j) => j), ticks: columns.map((_, j) => j), labels: columns.map((c) => show(across.labels[c])), title: across.name } };
  const chart = { kind: "heat", axis: across.name, scales: even, series, change: heat.what !== "score", share: isShare(at("metric", rows[0])) };
  const made = panel("heat-0", `${show(T.columns.metric.labels[heat.fixed.get("metric")])}: ${over.name} by ${across.name}`, () => draw("heat-0", chart));
  made.classList.add("wide");
  $("heat-panels").append(made);
}
const freeOfHeat = () => [T.columns.metric, T.columns.stage, ...axes(), T.columns.task].filter((c) => several(c) && ![heat.rows, heat.cols, "seed", ...(page.follows[heat.rows] ?? [])].includes(c.name));
function heatControls() {
  const again = () => { heat.fixed.clear(); settleHeat(); heatControls(); showHeat(); };
  const sides = [T.columns.task, ...axes()].filter(several).map((c) => [c.name, c.name]);
  const fix = (column) => choice(column.name, column.labels.map((label, code) => [code, show(label)]), heat.fixed.get(column.name), (value) => {
    heat.fixed.set(column.name, Number(value));
    if (!chosenRows(heat).length) { heat.fixed = new Map([[column.name, Number(value)]]); settleHeat(); heatControls(); }
    showHeat();
  });
  $("heat-controls").replaceChildren(
    choice("rows", sides, heat.rows, (name) => { heat.rows = name; again(); }), choice("columns", sides, heat.cols, (name) => { heat.cols = name; again(); }),
    ...measureChoice(heat, showHeat), ...freeOfHeat().map(fix),
  );
}
// What to begin with: of the combinations that agree with what is fixed, the one with most scores, and the last such one,
// since a study names its base first.
function settleHeat() {
  const free = freeOfHeat(), counts = new Map(), { task } = T.columns;
  for (const row of chosenRows(heat)) {
    if (task.labels[task.codes[row]] === null || !hasValue(row)) continue;
    const key = free.map((c) => c.codes[row]).join();
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  const most = Math.max(...counts.values()), best = [...counts].filter(([, count]) => count === most).at(-1)?.[0].split(",").map(Number) ?? free.map(() => 0);
  heat.fixed = new Map(free.map((c, i) => [c.name, best[i]]));
}
starters.heat = () => {
  heat.rows = page.over ?? axes().filter(several)[0]?.name ?? "task";
  settleHeat();
  heatControls();
  showHeat();
};
