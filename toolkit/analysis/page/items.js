// The item browser: what two models answered to the same prompts; and where a number comes from.

const browse = { set: 0, one: 0, two: 1, keep: "all", text: "", at: 0, size: 10 };
const KEEP = {
  all: () => true,
  "they differ": (a, b) => a.said !== b.said || a.right !== b.right,
  "only A is right": (a, b) => a.right === true && b.right !== true,
  "only B is right": (a, b) => b.right === true && a.right !== true,
  "both are wrong": (a, b) => a.right === false && b.right === false,
};
const answerOf = (set, side, i) => {
  const [prompt, said, right, score] = side.answers[i] ?? [];
  return prompt === undefined ? null : { prompt: set.texts[prompt], said: set.texts[said], right, score };
};
function written(text) {
  return make("div", { className: "written", textContent: text === "" ? "(empty)" : text });
}
function answer(name, found) {
  if (!found) return make("div", { className: "side" }, make("h4", { textContent: name }), make("p", { className: "note", textContent: "not answered" }));
  const mark = found.right === null ? "" : found.right ? "✓ right" : "✗ wrong";
  const head = make("h4", {}, name, " ", make("span", { className: found.right ? "mark right" : "mark", textContent: mark }));
  return make("div", { className: "side" }, head, written(found.said), found.score ? make("p", { className: "note", textContent: found.score }) : null);
}
async function showItems() {
  const sets = await unpackJson("items-data"), set = sets[browse.set];
  const sides = [set.sides[browse.one], set.sides[browse.two]], keep = KEEP[browse.keep], text = browse.text.toLowerCase();
  const found = [];
  set.gold.forEach((gold, i) => {
    const [a, b] = sides.map((side) => answerOf(set, side, i));
    if (!a && !b) return;
    const none = { said: null, right: null, prompt: "" };
    if (!keep(a ?? none, b ?? none)) return;
    if (text && ![a?.prompt, b?.prompt, a?.said, b?.said, set.texts[gold]].some((t) => plain(t).toLowerCase().includes(text))) return;
    found.push([i, gold, a, b]);
  });
  const pages = Math.max(1, Math.ceil(found.length / browse.size));
  browse.at = Math.min(browse.at, pages - 1);
  const first = browse.at * browse.size;
  $("items-list").replaceChildren(...found.slice(first, first + browse.size).map(([i, gold, a, b]) => {
    const prompts = a && b && a.prompt !== b.prompt ? [make("div", { className: "two" }, written(a.prompt), written(b.prompt))] : [written((a ?? b).prompt)];
    return make("article", { className: "item" },
      make("h3", { textContent: `${set.names[i]}` }), ...prompts,
      make("dl", { className: "pair" }, make("dt", { textContent: "gold" }), make("dd", {}, written(set.texts[gold]))),
      make("div", { className: "two" }, answer(`A: ${sides[0].name}`, a), answer(`B: ${sides[1].name}`, b)));
  }));
  const kept = set.kept < set.total ? ` The page keeps the first ${set.kept.toLocaleString("en")} of ${set.total.toLocaleString("en")}.` : "";
  $("items-note").textContent = `${found.length.toLocaleString("en")} items.${kept}`;
  $("items-pager").replaceChildren(...pager(found.length, browse.size, browse.at, (to) => { browse.at = to; showItems(); }));
}
async function itemControls() {
  const sets = await unpackJson("items-data"), set = sets[browse.set];
  browse.two = Math.min(browse.two, set.sides.length - 1);
  browse.one = Math.min(browse.one, set.sides.length - 1);
  const sides = set.sides.map((side, i) => [i, side.name]);
  const change = (name, number = true) => (value) => { browse[name] = number ? Number(value) : value; browse.at = 0; showItems(); };
  const find = make("input", { type: "search", placeholder: "text of prompt or answer", value: browse.text });
  find.addEventListener("input", () => change("text", false)(find.value));
  $("items-controls").replaceChildren(
    choice("items of", sets.map((each, i) => [i, each.name]), browse.set, (value) => { browse.set = Number(value); browse.at = 0; itemControls(); showItems(); }),
    choice("A", sides, browse.one, change("one")), choice("B", sides, browse.two, change("two")),
    choice("keep", Object.keys(KEEP).map((word) => [word, word]), browse.keep, change("keep", false)),
    make("label", { className: "grow" }, "find ", find),
  );
}
starters.items = async () => {
  const sets = await unpackJson("items-data");
  browse.two = sets[0].sides.length - 1;
  await itemControls();
  await showItems();
};

// ---- lineage: from a number up to the data, the code and the machines that it was made with
function facts(pairs) {
  return make("dl", { className: "pair" }, ...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", {}, value instanceof Node ? value : String(value))]));
}
function codes(texts) {
  return make("div", {}, ...texts.map((text) => make("div", {}, make("code", { textContent: text }))));
}
function cellBox(data, c, role) {
  const one = data.cells[c], machine = data.machines[one.machine] ?? null, code = data.codes[one.code] ?? null;
  const head = make("summary", {}, make("b", { textContent: one.name }), " ", make("span", { className: "soft", textContent: role }), " ", make("span", { className: `badge ${one.state}`, textContent: one.state }));
  return make("details", { className: "cell", open: role === "" }, head, facts([
    ["job", `${one.job}, version ${one.version}`],
    ["fingerprint", make("code", { textContent: one.fingerprint })],
    ["spec", make("pre", { textContent: data.specs[one.spec] })],
    ["inputs", one.inputs.length ? one.inputs.map(([name, i]) => `${name}: ${data.cells[i].name}`).join(", ") : null],
    ["adopted from", one.source],
    ["files", one.files.length ? codes(one.files) : null],
    ["commit", code && make("code", { textContent: code.commit })],
    ["digest of the code", code && make("code", { textContent: code.code })],
    ["environment", code && code.packages],
    ["machine", machine],
    ["took", one.took],
    ["message", one.message],
  ]));
}
async function showLineage(row) {
  const data = await unpackJson("lineage-data"), print = at("fingerprint", row), from = data.cells.findIndex((one) => one.fingerprint.startsWith(print));
  const value = hasValue(row) ? String(T.columns.value.values[row]) : stateOf(row);
  const own = T.list.filter((c) => c.codes && !["stage", "job", "state", "reason", "fingerprint"].includes(c.name) && cell(c, row) !== null).map((c) => [c.name, cell(c, row)]);
  const { how, low, high } = hasValue(row) ? intervalOf(row) : { how: "" };
  const stderr = T.columns.stderr.values[row];
  const boxes = [], seen = new Set();
  const walk = (i, role) => {
    if (i < 0 || seen.has(i)) return;
    seen.add(i);
    boxes.push(cellBox(data, i, role));
    for (const [name, above] of data.cells[i].inputs) walk(above, `as ${name} of ${data.cells[i].name}`);
  };
  walk(from, "");
  $("lineage-title").textContent = `${value}`;
  $("lineage-body").replaceChildren(
    facts([...own, ["standard error", Number.isFinite(stderr) ? String(stderr) : null], ["95 % interval", how ? `${rounded(low)} to ${rounded(high)} (${how})` : null]]),
    make("h3", { textContent: "The chain of cells that it comes from" }), ...boxes,
  );
  $("lineage-box").showModal();
  $("lineage-body").scrollTop = 0;
}
