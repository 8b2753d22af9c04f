// Comparisons and figures that were made before; and the beginning.

function showComparisons() {
  const rows = [...$("pairs").tBodies[0].rows], wanted = [...document.querySelectorAll("#pair-controls select")];
  for (const tr of rows) tr.hidden = wanted.some((select) => select.value !== "" && tr.dataset[select.dataset.column] !== select.value);
  $("pair-note").textContent = `${rows.filter((tr) => !tr.hidden).length} of ${rows.length} comparisons`;
}
starters.comparisons = () => {
  if (!$("pairs")) return;
  const rows = [...$("pairs").tBodies[0].rows];
  const fill = (name) => {
    const values = [...new Set(rows.map((tr) => tr.dataset[name]))];
    return values.length > 1 ? [choice(name, [["", "all"], ...values.map((v) => [v, v])], "", showComparisons)] : [];
  };
  $("pair-controls").replaceChildren(...["axis", "task", "verdict"].flatMap(fill));
  showComparisons();
};

async function startFigures(section) {
  const place = $(`${section}-panels`);
  if (!place) return;
  const made = (await unpackJson("charts-data"))[section];
  let number = 0;
  for (const { name, chart, about } of made) {
    const scales = Object.keys(chart.panels[0]?.scales ?? chart.scales ?? {});
    const ids = [];
    const group = chart.panels.map((each) => {
      const id = `${section}-${number++}`;
      ids.push(id);
      const one = panel(id, each.title || name, () => draw(id, { ...chart, ...each }, group.scale));
      if (chart.kind === "heat") one.classList.add("wide");
      return one;
    });
    const switcher = chart.kind === "lines" && scales.length > 1
      ? [choice("scale", scales.map((s) => [s, s]), scales[0], (value) => { group.scale = value; ids.filter((id) => charts.has(id)).forEach((id) => rescale(id, value)); })] : [];
    place.append(make("div", { className: group.length > 1 || chart.kind === "heat" ? "group" : "group one" }, make("h3", { textContent: name }), about ? make("p", { textContent: about }) : null, make("div", { className: "controls" }, ...switcher), make("div", { className: "panels" }, ...group)));
  }
}
for (const section of ["figures", "signals", "weights", "losses"]) starters[section] = () => startFigures(section);

(async () => {
  startTheme();
  root.classList.add("tabs");
  await openTable();
  $("lineage-box").addEventListener("click", (event) => { if (event.target === $("lineage-box")) $("lineage-box").close(); });
  addEventListener("hashchange", showTab);
  showTab();
  root.dataset.ready = "yes";
})();
