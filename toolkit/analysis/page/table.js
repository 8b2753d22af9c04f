// The table with filters, order and download; `view` is the row numbers that pass the filters, in order.

const PAGE = 50;
const list = { sort: null, down: false, page: 0, fixed: new Map(), text: "" };
let view = [];
const isNumber = (column) => !column.codes || column.numeric;
const textOf = (column, row) => (column.codes ? plain(column.labels[column.codes[row]]) : column.name === "value" && at("state", row) === "done" && at("metric", row) !== null ? String(column.values[row]) : Number.isFinite(column.values[row]) ? String(column.values[row]) : "");

function matches() {
  const text = list.text.toLowerCase(), rows = chosenRows(list);
  if (!text) return rows;
  const hits = T.list.map((c) => c.codes && c.labels.map((label) => plain(label).toLowerCase().includes(text)));
  return rows.filter((row) => T.list.some((c, i) => (hits[i] ? hits[i][c.codes[row]] : String(c.values[row]).includes(text))));
}
function order(rows) {
  if (!list.sort) return rows;
  const column = T.columns[list.sort], sign = list.down ? -1 : 1;
  // codes ascend with the labels of a numeric axis and follow the study for text; a missing value is always last
  const key = column.codes
    ? (row) => (column.labels[column.codes[row]] === null ? NaN : column.codes[row])
    : (row) => column.values[row];
  return rows.sort((a, b) => {
    const x = key(a), y = key(b);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return sign * (x - y) || a - b;
  });
}
function badge(row) {
  const word = at("state", row), reason = at("reason", row);
  return make("span", { className: `badge ${word}`, textContent: reason ? `${word}: ${reason}` : word });
}
function body(column, row) {
  if (column.name === "state") return make("td", {}, badge(row));
  const text = textOf(column, row), td = make("td", { className: isNumber(column) ? "number" : "" });
  if (text === "") td.append(make("span", { className: "none", textContent: "–" }));
  else if (column.name === "fingerprint") td.append(make("code", { textContent: text }));
  else if (column.name === "value") {
    const button = make("button", { type: "button", className: "plain", title: `${text}: where it comes from`, textContent: rounded(text) });
    button.addEventListener("click", () => showLineage(row));
    td.append(button);
  } else td.textContent = column.name === "stderr" ? rounded(text) : text;
  return td;
}
const shownColumns = () => T.list.filter((column) => column.name !== "reason");
function showTable() {
  const first = list.page * PAGE, rows = view.slice(first, first + PAGE);
  $("rows").tBodies[0].replaceChildren(...rows.map((row) => make("tr", {}, ...shownColumns().map((c) => body(c, row)))));
  $("table-pager").replaceChildren(...pager(view.length, PAGE, list.page, (to) => { list.page = to; showTable(); }));
  if (!view.length) $("table-pager").children[1].textContent = "no row passes the filters";
}
function refresh() {
  view = order(matches());
  list.page = 0;
  for (const th of $("rows").tHead.rows[0].cells) {
    const on = th.dataset.name === list.sort;
    th.setAttribute("aria-sort", on ? (list.down ? "descending" : "ascending") : "none");
    th.querySelector("span").textContent = on ? (list.down ? "↓" : "↑") : "";
  }
  showTable();
}
function sortBy(name) {
  if (list.sort !== name) Object.assign(list, { sort: name, down: false });
  else if (!list.down) list.down = true;
  else Object.assign(list, { sort: null, down: false });
  refresh();
}
function heading(column) {
  const button = make("button", { type: "button" }, column.name, make("span"));
  button.addEventListener("click", () => sortBy(column.name));
  const th = make("th", { className: isNumber(column) ? "number" : "", scope: "col" }, button);
  th.dataset.name = column.name;
  return th;
}
function csv() {
  const quote = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const lines = [T.list.map((column) => quote(column.name)).join(",")];
  for (const row of view) lines.push(T.list.map((column) => quote(textOf(column, row))).join(","));
  return lines.join("\n") + "\n";
}
function download() {
  const link = make("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: "rows.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
starters.table = () => {
  $("rows").tHead.append(make("tr", {}, ...shownColumns().map(heading)));
  const short = T.list.filter((c) => several(c) && c.labels.length <= 1000 && !["reason", "fingerprint", "job", "n"].includes(c.name));
  $("find").closest("label").after(...chooser("filters", list, short, refresh));
  $("find").addEventListener("input", (event) => { list.text = event.target.value; refresh(); });
  $("download").addEventListener("click", download);
  refresh();
};
