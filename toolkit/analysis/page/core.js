"use strict";
// The report's page, first of its scripts (they are joined in the order core, draw, explore, items, table, start):
// elements, data, theme, tabs. Nothing a model or a study wrote is ever parsed as HTML: it becomes text nodes, and
// plotly, which reads tags in its labels, is given escaped text.

const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children.filter((child) => child !== null)); // strings become text nodes
  return element;
};
const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
const escaped = (text) => String(text).replace(/[&<>]/g, (c) => ESCAPES[c]);
const plain = (value) => (value === null || value === undefined ? "" : String(value));
const rounded = (value) => {
  const number = Number(value), size = Math.abs(number);
  if (!Number.isFinite(number)) return String(value).toLowerCase().replace("infinity", "inf");
  if (Number.isInteger(number) && size >= 10) return String(number);
  return number === 0 || (size >= 5e-4 && size < 1e5) ? number.toFixed(3) : number.toPrecision(3);
};

// ---- data: JSON, or gzip in base64 (a table of a million rows would not be 20 MB otherwise)
const page = JSON.parse($("page-data").textContent);
async function unpack(id) {
  const text = atob($(id).textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
const packed = new Map(); // what was unpacked once, by the id of its element
const unpackJson = (id) => {
  if (!packed.has(id)) packed.set(id, unpack(id).then((bytes) => JSON.parse(new TextDecoder().decode(bytes))));
  return packed.get(id);
};

// ---- theme: the system's choice until the reader makes his own
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
const remembered = () => { try { return localStorage.getItem("tidemark-theme"); } catch { return null; } };
const isDark = () => (root.dataset.theme === "auto" ? system.matches : root.dataset.theme === "dark");
function setTheme(theme) {
  root.dataset.theme = theme;
  restyle();
}
function startTheme() {
  const theme = remembered();
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  $("theme").addEventListener("click", () => {
    const chosen = isDark() ? "light" : "dark";
    try { localStorage.setItem("tidemark-theme", chosen); } catch { /* a page from a file may have no storage */ }
    setTheme(chosen);
  });
  system.addEventListener("change", () => restyle());
}

// ---- tabs: the address names the section that is shown; without JavaScript all of them stand below each other
const starters = {}; // section -> what fills it when it is shown first
function showTab() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const sections = [...document.querySelectorAll("main > section")];
  const inside = sections.find((section) => section.id === wanted || (wanted && section.querySelector(`#${CSS.escape(wanted)}`)));
  const shown = inside ?? sections[0];
  for (const section of sections) section.classList.toggle("shown", section === shown);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${shown.id}`) {
      link.setAttribute("aria-current", "page");
      link.parentElement.scrollLeft = link.offsetLeft - link.parentElement.offsetLeft - 40; // on a phone they do not all fit
    } else link.removeAttribute("aria-current");
  }
  const start = starters[shown.id];
  delete starters[shown.id];
  start?.();
  if (inside && inside.id !== wanted) $(wanted).scrollIntoView();
  else scrollTo(0, 0);
}

// ---- small pieces that several sections use
function choice(name, options, chosen, changed) {
  const select = make("select", {}, ...options.map(([value, text]) => make("option", { value, textContent: text })));
  select.dataset.column = name;
  select.value = chosen;
  select.addEventListener("change", () => changed(select.value));
  return make("label", {}, `${name} `, select);
}
function pager(total, size, at, move) {
  const first = at * size;
  const count = total ? `${(first + 1).toLocaleString("en")}–${Math.min(total, first + size).toLocaleString("en")} of ${total.toLocaleString("en")}` : "";
  const button = (text, to, off) => {
    const made = make("button", { type: "button", textContent: text, disabled: off });
    made.addEventListener("click", () => move(to));
    return made;
  };
  return [button("‹ Previous", at - 1, at === 0), make("span", { textContent: count }), button("Next ›", at + 1, first + size >= total)];
}
