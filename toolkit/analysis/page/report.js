"use strict";
// The report's page: theme, figures drawn when they come into view, and the table with filters, order and download.
(() => {
  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);
  const make = (tag, props = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), props);
    element.append(...children); // strings become text nodes: nothing a model wrote is ever parsed as HTML
    return element;
  };

  // ---- theme: the system's choice until the reader makes his own
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => { try { return localStorage.getItem("tidemark-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme === "auto" ? system.matches : root.dataset.theme === "dark");
  const setTheme = (theme) => { root.dataset.theme = theme; restyle(); };
  $("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("tidemark-theme", theme); } catch { /* a page from a file may have no storage */ }
    setTheme(theme);
  });
  system.addEventListener("change", () => restyle());

  // ---- figures
  const figures = read("figures-data");
  const drawn = new Set();
  const hovers = matchMedia("(hover: hover)").matches;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const look = () => {
    const axis = { linecolor: colour("--line"), tickcolor: colour("--line"), gridcolor: colour("--grid") };
    return {
      "font.color": colour("--ink"),
      "legend.font.color": colour("--ink"),
      "hoverlabel.bgcolor": colour("--card"), "hoverlabel.bordercolor": colour("--line"), "hoverlabel.font.color": colour("--ink"),
      ...Object.fromEntries(Object.entries(axis).flatMap(([k, v]) => ["xaxis", "yaxis"].map((a) => [`${a}.${k}`, v]))),
      "yaxis2.color": colour("--soft"), "modebar.color": colour("--soft"), "modebar.activecolor": colour("--accent"),
      "modebar.bgcolor": "rgba(0,0,0,0)",
    };
  };
  const assign = (target, flat) => {
    for (const [path, value] of Object.entries(flat)) {
      const keys = path.split("."), last = keys.pop();
      if (keys[0] === "yaxis2" && !target.yaxis2) continue;
      keys.reduce((at, key) => (at[key] ??= {}), target)[last] = value;
    }
  };
  function restyle() {
    const flat = look();
    for (const id of drawn) {
      const own = { ...flat };
      if (!figures[id].layout.yaxis2) delete own["yaxis2.color"];
      Plotly.relayout(id, own);
    }
  }
  const scaleOf = (figure, wanted) => figure.layout.meta.scales[wanted] ?? Object.values(figure.layout.meta.scales)[0];
  const positions = (trace, scale) => trace.meta.map((at) => (at === null ? null : scale.x[at]));
  const ticks = (scale) => {
    const room = 0.04 * (scale.x.at(-1) - scale.x[0]) || 1;
    return { tickvals: scale.ticks, ticktext: scale.labels, title: scale.title, range: [scale.x[0] - room, scale.x.at(-1) + room] };
  };
  const wantedScale = (id) => (!id.startsWith("losses") && $("scale") ? $("scale").value : null);
  // The page draws the legend itself: plotly's takes its room from the plot, which on a phone leaves none.
  const DASH = { dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "9 4", longdashdot: "9 3 2 3" };
  const MARK = {
    circle: "●", square: "■", diamond: "◆", "triangle-up": "▲", cross: "✚", "triangle-down": "▼", star: "★", pentagon: "⬟",
    hexagon: "⬢", "circle-open": "○", "triangle-right-open": "▷", x: "✖", "square-open": "□", "asterisk-open": "✱",
  };
  const unescape = (text) => text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
  const swatch = (trace) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const add = (tag, attributes) => {
      const element = document.createElementNS(svg.namespaceURI, tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      svg.append(element);
      return element;
    };
    const isLine = trace.mode.includes("lines"), width = isLine ? 32 : 14;
    svg.setAttribute("width", width);
    svg.setAttribute("height", 14);
    if (isLine) add("path", { d: "M1,7 H31", stroke: trace.line.color, "stroke-width": 2, "stroke-dasharray": DASH[trace.line.dash] ?? "" });
    if (trace.mode.includes("markers")) {
      const colour = isLine ? trace.line.color : trace.marker.color;
      add("text", { x: width / 2, y: 11, "text-anchor": "middle", "font-size": 11, fill: colour }).textContent = MARK[trace.marker.symbol] ?? "•";
    }
    return svg;
  };
  function legend(id) {
    const figure = figures[id];
    const entries = figure.data.filter((trace) => trace.name && trace.showlegend !== false && figure.data.length > 1);
    const keys = entries.map((trace) => {
      if (!trace.legendgroup) return make("span", {}, swatch(trace), trace.name);
      const key = make("button", { type: "button", title: "show or hide" }, swatch(trace), unescape(trace.name));
      const members = figure.data.map((t, i) => (t.legendgroup === trace.legendgroup ? i : -1)).filter((i) => i >= 0);
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
  function draw(id) {
    if (drawn.has(id)) return;
    const figure = figures[id], scale = scaleOf(figure, wantedScale(id)), now = ticks(scale);
    drawn.add(id);
    figure.data.forEach((trace) => { trace.x = positions(trace, scale); });
    assign(figure.layout, look());
    Object.assign(figure.layout.xaxis, { ...now, title: { ...figure.layout.xaxis.title, text: now.title } });
    Object.assign(figure.layout, { showlegend: false, height: figure.layout.height - 56 });
    legend(id);
    if (!hovers) figure.layout.dragmode = false; // a finger that scrolls the page must not zoom the figure
    Plotly.newPlot(id, figure.data, figure.layout, {
      responsive: true, displaylogo: false, displayModeBar: hovers && "hover", modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
    });
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target.id); }
  }, { rootMargin: "300px" });

  function rescale() {
    for (const id of drawn) {
      if (id.startsWith("losses")) continue;
      const figure = figures[id], scale = scaleOf(figure, $("scale").value), now = ticks(scale);
      const move = { "xaxis.tickvals": now.tickvals, "xaxis.ticktext": now.ticktext, "xaxis.title.text": now.title, "xaxis.range": now.range };
      Plotly.update(id, { x: figure.data.map((trace) => positions(trace, scale)) }, move);
    }
  }
  function choosePanels() {
    for (const panel of document.querySelectorAll("#curves > .panels > .panel")) {
      const off = (name) => $(name).value !== "" && $(name).value !== panel.dataset[name];
      panel.hidden = off("task") || off("metric");
    }
  }
  function fill(select, options) {
    select.append(...options.map(([value, text]) => make("option", { value, textContent: text })));
    select.closest("label").hidden = options.length < 2;
  }
  function startCurves() {
    const panels = [...document.querySelectorAll("#curves > .panels > .panel")];
    const known = new Set(Object.keys(figures).filter((id) => !id.startsWith("losses")).flatMap((id) => Object.keys(figures[id].layout.meta.scales)));
    fill($("scale"), ["log", "linear", "even"].filter((name) => known.has(name)).map((name) => [name, name]));
    for (const name of ["task", "metric"]) {
      const values = [...new Set(panels.map((panel) => panel.dataset[name]))].sort();
      fill($(name), values.length > 1 ? [["", "all"], ...values.filter((v) => v !== "").map((v) => [v, v])] : []);
      $(name).addEventListener("change", choosePanels);
    }
    $("scale").addEventListener("change", rescale);
  }

  // ---- table: columns of labels and codes, or of numbers; `view` is the row numbers that pass the filters, in order
  const table = read("table-data");
  const PAGE = 50;
  const columns = Object.fromEntries(table.columns.map((column) => [column.name, column]));
  const state = { sort: null, down: false, page: 0, filters: new Map(), text: "" };
  let view = [];
  const cell = (column, row) => (column.codes ? column.labels[column.codes[row]] : column.values[row]);
  const plain = (value) => (value === null ? "" : String(value));
  const rounded = (value) => {
    const number = Number(value), size = Math.abs(number);
    if (!Number.isFinite(number)) return String(value).toLowerCase();
    if (Number.isInteger(number) && size >= 10) return String(number);
    return number === 0 || (size >= 5e-4 && size < 1e5) ? number.toFixed(3) : number.toPrecision(3);
  };
  const isNumber = (column) => !column.codes || column.numeric;

  function matches() {
    const text = state.text.toLowerCase();
    const hits = text && table.columns.map((c) => c.codes && c.labels.map((label) => plain(label).toLowerCase().includes(text)));
    const filters = [...state.filters].map(([name, code]) => [columns[name].codes, code]);
    const found = [];
    for (let row = 0; row < table.rows; row++) {
      if (!filters.every(([codes, code]) => codes[row] === code)) continue;
      if (hits && !table.columns.some((c, i) => (hits[i] ? hits[i][c.codes[row]] : plain(c.values[row]).includes(text)))) continue;
      found.push(row);
    }
    return found;
  }
  function order(rows) {
    if (!state.sort) return rows;
    const column = columns[state.sort], sign = state.down ? -1 : 1;
    // codes ascend with the labels of a numeric axis and follow the study for text; a missing value is always last
    const key = column.codes
      ? (row) => (column.labels[column.codes[row]] === null ? null : column.codes[row])
      : (row) => { const value = column.values[row]; return value === null || value === "NaN" ? null : Number(value); };
    return rows.sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * (x - y) || a - b;
    });
  }
  function badge(row) {
    const word = cell(columns.state, row), reason = cell(columns.reason, row);
    return make("span", { className: `badge ${word}`, textContent: reason ? `${word}: ${reason}` : word });
  }
  function body(column, row) {
    if (column.name === "state") return make("td", {}, badge(row));
    const value = cell(column, row);
    const td = make("td", { className: isNumber(column) ? "number" : "" });
    if (value === null) td.append(make("span", { className: "none", textContent: "–" }));
    else if (column.name === "fingerprint") td.append(make("code", { textContent: value }));
    else td.textContent = column.name === "value" || column.name === "stderr" ? rounded(value) : value;
    if (column.name === "value" && value !== null) td.title = String(value);
    return td;
  }
  const visibleColumns = table.columns.filter((column) => column.name !== "reason");
  function show() {
    const first = state.page * PAGE, rows = view.slice(first, first + PAGE);
    $("rows").tBodies[0].replaceChildren(...rows.map((row) => make("tr", {}, ...visibleColumns.map((c) => body(c, row)))));
    $("shown").textContent = view.length ? `${(first + 1).toLocaleString("en")}–${(first + rows.length).toLocaleString("en")} of ${view.length.toLocaleString("en")}` : "no row passes the filters";
    $("before").disabled = state.page === 0;
    $("after").disabled = first + PAGE >= view.length;
  }
  function refresh() {
    view = order(matches());
    state.page = 0;
    for (const th of $("rows").tHead.rows[0].cells) {
      const on = th.dataset.name === state.sort;
      th.setAttribute("aria-sort", on ? (state.down ? "descending" : "ascending") : "none");
      th.querySelector("span").textContent = on ? (state.down ? "↓" : "↑") : "";
    }
    show();
  }
  function sortBy(name) {
    if (state.sort !== name) Object.assign(state, { sort: name, down: false });
    else if (!state.down) state.down = true;
    else Object.assign(state, { sort: null, down: false });
    refresh();
  }
  function heading(column) {
    const button = make("button", { type: "button" }, column.name, make("span"));
    button.addEventListener("click", () => sortBy(column.name));
    const th = make("th", { className: isNumber(column) ? "number" : "", scope: "col" }, button);
    th.dataset.name = column.name;
    return th;
  }
  function filter(column) {
    const select = make("select");
    select.dataset.column = column.name;
    select.append(make("option", { value: "", textContent: "all" }));
    column.labels.forEach((label, code) => select.append(make("option", { value: code, textContent: label ?? "–" })));
    select.addEventListener("change", () => {
      if (select.value === "") state.filters.delete(column.name);
      else state.filters.set(column.name, Number(select.value));
      refresh();
    });
    return make("label", {}, `${column.name} `, select);
  }
  function csv() {
    const quote = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    const lines = [table.columns.map((column) => quote(column.name)).join(",")];
    for (const row of view) lines.push(table.columns.map((column) => quote(plain(cell(column, row)))).join(","));
    return lines.join("\n") + "\n";
  }
  function download() {
    const link = make("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: `${document.title.split(" · ")[0]}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  function startTable() {
    $("rows").tHead.append(make("tr", {}, ...visibleColumns.map(heading)));
    const short = table.columns.filter((c) => c.codes && c.labels.length > 1 && c.labels.length <= 200 && !["reason", "fingerprint", "job"].includes(c.name));
    $("find").closest("label").after(...short.map(filter));
    $("find").addEventListener("input", (event) => { state.text = event.target.value; refresh(); });
    $("before").addEventListener("click", () => { state.page--; show(); });
    $("after").addEventListener("click", () => { state.page++; show(); });
    $("download").addEventListener("click", download);
    refresh();
  }

  const theme = remembered();
  if (theme === "light" || theme === "dark") setTheme(theme);
  if ($("curves")) startCurves();
  startTable();
  document.querySelectorAll(".plot").forEach((plot) => watcher.observe(plot));
})();
