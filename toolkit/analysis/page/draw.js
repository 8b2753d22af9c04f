// Figures. A chart is {kind, axis, scales, measure, series: [{key, name, points: [{at, value, low, high, said, row}]}], chance}:
// what `toolkit.analysis.charts` makes for print as well. `at` counts the coordinates of the axis.

const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const MARKERS = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star", "pentagon", "hexagon"];
const MARKS = { "never-run": "circle-open", running: "triangle-right-open", failed: "x", blocked: "square-open", "no value": "asterisk-open" };
const DASH = { dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "9 4", longdashdot: "9 3 2 3" };
const MARK = {
  circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", cross: "✚", "triangle-down": "▼", star: "★", pentagon: "⬟",
  hexagon: "⬢", "circle-open": "○", "triangle-right-open": "▷", x: "✖", "square-open": "□", "asterisk-open": "✱",
};
const HEIGHT = 270, MANY = 60; // pixels of a panel; points above which a line has no markers
const charts = new Map(); // id of a plot -> its chart, and what plotly has of it
const hovers = matchMedia("(hover: hover)").matches;
const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const known = (number) => number !== null && number !== undefined && Number.isFinite(number);

function look() {
  const axis = { linecolor: colour("--line"), tickcolor: colour("--line"), gridcolor: colour("--grid"), zerolinecolor: colour("--line") };
  return {
    "font.color": colour("--ink"),
    "hoverlabel.bgcolor": colour("--card"), "hoverlabel.bordercolor": colour("--line"), "hoverlabel.font.color": colour("--ink"),
    ...Object.fromEntries(Object.entries(axis).flatMap(([k, v]) => ["xaxis", "yaxis"].map((a) => [`${a}.${k}`, v]))),
    "yaxis2.color": colour("--soft"), "modebar.color": colour("--soft"), "modebar.activecolor": colour("--accent"),
    "modebar.bgcolor": "rgba(0,0,0,0)",
  };
}
function assign(target, flat) {
  for (const [path, value] of Object.entries(flat)) {
    const keys = path.split("."), last = keys.pop();
    if (keys[0] === "yaxis2" && !target.yaxis2) continue;
    keys.reduce((at, key) => (at[key] ??= {}), target)[last] = value;
  }
  return target;
}
function restyle() {
  for (const [id, { layout }] of charts) {
    if (!$(id)) continue;
    const flat = look();
    if (!layout.yaxis2) delete flat["yaxis2.color"];
    Plotly.relayout(id, flat);
    if ($(id).dataset.kind === "heat") Plotly.restyle(id, { colorscale: [heatColours(charts.get(id).chart)] });
  }
}

// Colour by the first coordinate of a key, dash and marker by the others; with one coordinate all three differ.
function stylesOf(series) {
  const texts = (key) => JSON.stringify(key), unique = (keys) => [...new Set(keys.map(texts))];
  const firsts = unique(series.map((s) => s.key.slice(0, 1))), rests = unique(series.map((s) => s.key.slice(1)));
  return series.map((s, i) => {
    const first = firsts.indexOf(texts(s.key.slice(0, 1)));
    const other = rests.length > 1 ? rests.indexOf(texts(s.key.slice(1))) + Math.floor(first / page.colours.length) : i;
    return { colour: page.colours[first % page.colours.length], dash: DASHES[other % DASHES.length], marker: MARKERS[other % MARKERS.length] };
  });
}
const faint = (hex) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},0.16)`;
// What hovering says: lines of text, the first of them bold.
const saidOf = (p) => (p.said ?? []).map((line, i) => (i ? escaped(cut(line)) : `<b>${escaped(cut(line))}</b>`)).join("<br>");
const cut = (text) => (text.length > 160 ? `${text.slice(0, 160)} …` : text);
const HOVER = { hovertemplate: "%{text}<extra></extra>" };

function lineTraces(chart) {
  const styles = stylesOf(chart.series), traces = [];
  const last = Object.values(chart.scales)[0].x.length - 1;
  chart.series.forEach((series, i) => {
    const style = styles[i], group = { legendgroup: `${i}`, name: series.name };
    const placed = series.points.filter((p) => p.at >= 0), fixed = series.points.filter((p) => p.at < 0 && known(p.value));
    if (placed.length) traces.push(...bandTraces(placed, style, group), curveTrace(placed, style, group));
    for (const point of fixed) {
      const line = { color: style.colour, width: 1.5, dash: "dot" };
      traces.push({ ...group, ...HOVER, mode: "lines", line, y: [point.value, point.value], at: [0, last], text: [saidOf(point), saidOf(point)], customdata: [point.row, point.row], showlegend: !placed.length });
    }
  });
  if (known(chart.chance)) {
    const line = { color: page.colours.at(-1), width: 1.2, dash: "dot" }, said = `chance: ${rounded(chart.chance)}`;
    traces.push({ ...HOVER, name: "chance", mode: "lines", line, y: [chart.chance, chart.chance], at: [0, last], text: [said, said] });
  }
  return [...traces, ...stripTraces(chart, styles)];
}
// Neighbouring points that have an interval make a band; a point alone would have none, and gets a bar.
function runs(points) {
  const found = [[]];
  points.forEach((p, i) => (known(p.low) && known(p.high) ? found.at(-1).push(i) : found.push([])));
  return found.filter((run) => run.length);
}
function bandTraces(points, style, group) {
  const at = [], y = [];
  for (const run of runs(points).filter((r) => r.length > 1)) {
    for (const i of run) { at.push(points[i].at); y.push(points[i].high); }
    for (const i of [...run].reverse()) { at.push(points[i].at); y.push(points[i].low); }
    at.push(null); y.push(null);
  }
  return at.length ? [{ ...group, at, y, mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: faint(style.colour), hoverinfo: "skip", showlegend: false }] : [];
}
function curveTrace(points, style, group) {
  const alone = new Set(runs(points).filter((r) => r.length === 1).flat());
  const ends = (take) => points.map((p, i) => (alone.has(i) ? take(p) : null));
  return {
    ...group, ...HOVER, at: points.map((p) => p.at), y: points.map((p) => (known(p.value) ? p.value : null)), text: points.map(saidOf),
    customdata: points.map((p) => p.row), mode: points.length > MANY ? "lines" : "lines+markers",
    line: { color: style.colour, width: 2, dash: style.dash }, marker: { symbol: style.marker, size: 7, color: style.colour },
    ...(alone.size ? { error_y: { type: "data", symmetric: false, width: 0, array: ends((p) => p.high - p.value), arrayminus: ends((p) => p.value - p.low) } } : {}),
  };
}
// What has no number stands in a strip below, a row for each line that misses any, in its colour.
const isMissing = (p) => p.at >= 0 && !known(p.value);
function stripTraces(chart, styles) {
  const rows = chart.series.map((s, i) => [s.points.filter(isMissing), styles[i].colour]).filter(([missing]) => missing.length);
  const marks = {};
  rows.forEach(([missing, shade], row) => {
    for (const p of missing) {
      const state = Object.keys(MARKS).find((word) => (p.state ?? "no value").startsWith(word)) ?? "no value";
      (marks[state] ??= []).push({ ...p, y: -row, shade });
    }
  });
  return Object.keys(MARKS).filter((state) => marks[state]).flatMap((state) => {
    const some = marks[state], marker = { symbol: MARKS[state], size: 8 };
    return [
      { ...HOVER, mode: "markers", yaxis: "y2", showlegend: false, at: some.map((p) => p.at), y: some.map((p) => p.y), text: some.map(saidOf), customdata: some.map((p) => p.row), marker: { ...marker, color: some.map((p) => p.shade) } },
      { name: state, mode: "markers", at: [0], y: [null], hoverinfo: "skip", marker: { ...marker, color: page.colours.at(-1) } },
    ];
  });
}
const missingRows = (chart) => chart.series.filter((s) => s.points.some(isMissing)).length;

function onScale(chart, wanted) {
  const scale = chart.scales[wanted] ?? Object.values(chart.scales)[0];
  const room = 0.04 * (scale.x.at(-1) - scale.x[0]) || 1;
  const axis = { tickvals: scale.ticks, ticktext: scale.labels.map(escaped), range: [scale.x[0] - room, scale.x.at(-1) + room] };
  return { scale, axis, title: escaped(scale.title) };
}
function lineLayout(chart, wanted) {
  const missing = missingRows(chart), strip = missing ? Math.min(12 * missing + 8, 120) : 0, low = strip / (HEIGHT - 74 + strip);
  const { axis, title } = onScale(chart, wanted);
  const layout = {
    height: HEIGHT + strip, hovermode: "closest", margin: { l: 56, r: 14, t: 10, b: 48 },
    xaxis: { ...axis, title: { text: title, standoff: 6 }, zeroline: false, showgrid: false, ticks: "outside", ticklen: 4, tickangle: 0, anchor: missing ? "y2" : "y" },
    yaxis: { zeroline: Boolean(chart.change), domain: [missing ? low + 0.04 : 0, 1], nticks: 6, title: { text: escaped(chart.measure ?? ""), font: { size: 11 }, standoff: 4 } },
  };
  const quiet = { showgrid: false, zeroline: false, showticklabels: false, fixedrange: true };
  if (missing) layout.yaxis2 = { ...quiet, domain: [0, low], range: [0.3 - missing, 0.7], title: { text: "not<br>done", font: { size: 9 } } };
  return layout;
}
function barTraces(chart) {
  const styles = stylesOf(chart.series), labels = Object.values(chart.scales)[0].labels.map(escaped);
  return chart.series.map((s, i) => ({
    ...HOVER, type: "bar", name: s.name, legendgroup: `${i}`, x: s.points.map((p) => labels[p.at]), y: s.points.map((p) => p.value), text: s.points.map(saidOf), textposition: "none",
    marker: { color: styles[i].colour, pattern: { shape: ["", "/", ".", "x"][i % 4], fgcolor: "rgba(255,255,255,.7)" } },
    error_y: { type: "data", symmetric: false, thickness: 1, width: 3, color: page.colours.at(-1), array: s.points.map((p) => p.high - p.value || 0), arrayminus: s.points.map((p) => p.value - p.low || 0) },
  }));
}
function scatterTraces(chart) {
  const styles = stylesOf(chart.series);
  return chart.series.map((s, i) => ({
    ...HOVER, mode: "markers", name: s.name, legendgroup: `${i}`, x: s.points.map((p) => p.at), y: s.points.map((p) => p.value), text: s.points.map(saidOf), customdata: s.points.map((p) => p.row),
    marker: { color: styles[i].colour, symbol: styles[i].marker, size: 9 },
  }));
}
// From pale to dark for scores, through white at 0 for changes; both can be told apart by any eye and in grey.
function heatColours(chart) {
  const card = colour("--card");
  return chart.change ? [[0, "#b35806"], [0.5, card], [1, "#542788"]] : [[0, card], [1, isDark() ? "#6cb8e8" : "#00518a"]];
}
function heatTraces(chart) {
  const labels = Object.values(chart.scales)[0].labels, all = chart.series.flatMap((s) => s.points.map((p) => p.value)).filter(known);
  const bound = Math.max(...all.map(Math.abs), 1e-9), grid = (take) => chart.series.map((s) => labels.map((_, j) => take(s.points.find((p) => p.at === j))));
  const z = grid((p) => (p && known(p.value) ? p.value : null)), ends = chart.change ? [-bound, bound] : chart.share ? [0, 1] : [Math.min(0, ...all), Math.max(...all, 1e-9)];
  return [{
    type: "heatmap", x: labels.map((_, j) => j), y: chart.series.map((_, i) => i), z, text: grid((p) => (p ? saidOf(p) : "")), customdata: grid((p) => p?.row ?? null), hoverongaps: true, xgap: 2, ygap: 2,
    ...HOVER, zmin: ends[0], zmax: ends[1], colorscale: heatColours(chart), showscale: false,
  }];
}
function heatLayout(chart) {
  const labels = Object.values(chart.scales)[0].labels, names = chart.series.map((s) => s.name), all = chart.series.flatMap((s) => s.points.map((p) => Math.abs(p.value))).filter(known);
  const room = Math.max(...names.map((n) => n.length), 4), bound = chart.share ? 1 : Math.max(...all, 1e-9), small = labels.length * names.length <= 400;
  const ink = (p) => (Math.abs(p.value) > 0.55 * bound ? (isDark() && !chart.change ? "#10151a" : "#ffffff") : colour("--ink"));
  return {
    height: 96 + 26 * names.length + 6 * Math.max(...labels.map((l) => Math.min(l.length, 24))), margin: { l: Math.min(24 + 7 * room, 220), r: 14, t: 12, b: 40 },
    xaxis: { tickvals: labels.map((_, j) => j), ticktext: labels.map(escaped), tickangle: labels.length > 6 ? -40 : 0, showgrid: false, zeroline: false, automargin: true },
    yaxis: { tickvals: names.map((_, i) => i), ticktext: names.map(escaped), autorange: "reversed", showgrid: false, zeroline: false, automargin: true },
    annotations: small ? chart.series.flatMap((s, i) => s.points.map((p) => ({
      x: p.at, y: i, showarrow: false, text: known(p.value) ? p.value.toFixed(2) : escaped(p.state ?? "no value").split(":")[0], font: { size: 11, color: known(p.value) ? ink(p) : colour("--soft") },
    }))) : [],
  };
}
const KINDS = { lines: lineTraces, bars: barTraces, scatter: scatterTraces, heat: heatTraces };
function layoutOf(chart, wanted) {
  const plainAxes = { height: HEIGHT + 40, margin: { l: 56, r: 14, t: 10, b: 60 }, barmode: "group", xaxis: { zeroline: false, showgrid: false, automargin: true, title: { text: escaped(chart.axis) } }, yaxis: { nticks: 6, title: { text: escaped(chart.measure ?? "") } } };
  const own = chart.kind === "lines" ? lineLayout(chart, wanted) : chart.kind === "heat" ? heatLayout(chart) : plainAxes;
  const shared = { showlegend: false, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, -apple-system, 'Segoe UI', sans-serif", size: 12 } };
  if (!hovers) shared.dragmode = false; // a finger that scrolls the page must not zoom the figure
  return assign({ ...shared, ...own }, look());
}
function draw(id, chart, wanted = null) {
  const data = KINDS[chart.kind](chart), layout = layoutOf(chart, wanted);
  place(data, chart, wanted);
  charts.set(id, { chart, data, layout });
  $(id).dataset.kind = chart.kind;
  legend(id, data);
  Plotly.newPlot(id, data, layout, {
    responsive: true, displaylogo: false, displayModeBar: hovers && "hover", modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
  });
  $(id).on("plotly_click", (event) => {
    const row = event.points.map((p) => p.customdata).find((r) => r !== null && r !== undefined);
    if (row !== undefined) showLineage(row);
  });
}
function place(data, chart, wanted) {
  if (chart.kind !== "lines") return;
  const { scale } = onScale(chart, wanted);
  for (const trace of data) trace.x = trace.at.map((at) => (at === null ? null : scale.x[at]));
}
function rescale(id, wanted) {
  const { chart, data } = charts.get(id), { axis, title } = onScale(chart, wanted);
  place(data, chart, wanted);
  Plotly.update(id, { x: data.map((trace) => trace.x) }, { "xaxis.tickvals": axis.tickvals, "xaxis.ticktext": axis.ticktext, "xaxis.title.text": title, "xaxis.range": axis.range });
}
// The page draws legends itself: plotly's takes its room from the plot, which on a phone leaves none.
function swatch(trace) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const add = (tag, attributes) => {
    const element = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    svg.append(element);
    return element;
  };
  const isLine = trace.mode?.includes("lines"), width = isLine ? 32 : 14, shade = isLine ? trace.line.color : trace.marker.color;
  svg.setAttribute("width", width);
  svg.setAttribute("height", 14);
  if (isLine) add("path", { d: "M1,7 H31", stroke: shade, "stroke-width": 2, "stroke-dasharray": DASH[trace.line.dash] ?? "" });
  if (trace.type === "bar") add("rect", { x: 1, y: 2, width: 11, height: 11, fill: shade });
  else if (!isLine || trace.mode.includes("markers")) add("text", { x: width / 2, y: 11, "text-anchor": "middle", "font-size": 11, fill: shade }).textContent = MARK[trace.marker.symbol] ?? "•";
  return svg;
}
function legend(id, data) {
  $(id).nextElementSibling?.classList.contains("legend") && $(id).nextElementSibling.remove();
  const entries = data.filter((trace) => trace.name && trace.showlegend !== false && data.length > 1);
  const keys = entries.map((trace) => {
    if (trace.legendgroup === undefined) return make("span", {}, swatch(trace), trace.name);
    const key = make("button", { type: "button", title: "show or hide" }, swatch(trace), trace.name);
    const members = data.map((t, i) => (t.legendgroup === trace.legendgroup ? i : -1)).filter((i) => i >= 0);
    key.setAttribute("aria-pressed", "true");
    key.addEventListener("click", () => {
      const on = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", String(on));
      Plotly.restyle(id, { visible: on }, members);
    });
    return key;
  });
  $(id).after(make("div", { className: "legend" }, ...keys));
}

// Figures are drawn when they come into view: `waiting` holds what is to be drawn by then.
const waiting = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    // an entry may be older than a choice that replaced its panel: what waits under that id belongs to the new one
    if (!entry.target.isConnected) watcher.unobserve(entry.target);
    const start = entry.isIntersecting && entry.target.isConnected && waiting.get(entry.target.id);
    if (!start) continue;
    watcher.unobserve(entry.target);
    waiting.delete(entry.target.id);
    start();
  }
}, { rootMargin: "300px" });
function panel(id, title, start) {
  const plot = make("div", { className: "plot", id, role: "img", ariaLabel: title });
  waiting.set(id, start);
  watcher.observe(plot);
  return make("figure", { className: "panel" }, make("figcaption", { textContent: title }), plot);
}
