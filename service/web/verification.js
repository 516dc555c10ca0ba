// Departures and errors at withheld stations over the last days, a panel for each network and
// variable. Text only ever goes into textContent, so nothing that a sender wrote is read as markup.

import { apiUrl, byId, element, getJson, keyForm, shape } from "./api.js";
import { showCalls } from "./calls.js";

const EVERY = 60000;
const PANELS = 24;
const WIDTH = 420, HEIGHT = 150, LEFT = 44, BOTTOM = 20, TOP = 6;
const LINES = {
  rms_background: ["O−B", "#8d99ae", ""],
  rms_analysis: ["O−A", "#1f77b4", ""],
  withheld_rmse_background: ["withheld O−B", "#edae49", "5 3"],
  withheld_rmse_analysis: ["withheld O−A", "#d1495b", "5 3"],
  chi2: ["chi-square of innovations", "#6a4c93", ""],
};

async function newest(flavour) {
  const wanted = flavour === "job" ? "" : flavour;
  const { items } = await getJson(apiUrl("v1/analyses", { kind: "filtering", latest: true, flavour: wanted }));
  return items.length ? new Date(items[0].valid_time) : null;
}

async function rowsOf(flavour, from, to) {
  const query = {
    statistic: [...Object.keys(LINES), "outside_limits"].join(","),
    layer: "all",
    flavour: flavour,
    valid_from: from.toISOString(),
    valid_to: to.toISOString(),
    limit: 20000,
  };
  showCalls([{ url: apiUrl("v1/verification", query) }]);
  const rows = [];
  for (let cursor = ""; cursor !== null;) {
    const page = await getJson(apiUrl("v1/verification", { ...query, cursor }));
    rows.push(...page.items);
    cursor = page.next_cursor;
  }
  return rows.map((row) => ({ ...row, time: Date.parse(row.valid_time) }));
}

// Panels in the order of how many values they stand for; all networks together first.
function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    if (row.statistic === "outside_limits") continue;
    const name = row.network === "all" ? "all networks" : `${row.network}: ${row.variable}`;
    if (!groups.has(name)) groups.set(name, { name, count: 0, lines: {} });
    const group = groups.get(name);
    if (row.statistic === "rms_background") group.count += row.count;
    if (row.network === "all") group.count = Infinity;
    (group.lines[row.statistic] ??= []).push(row);
  }
  return [...groups.values()].sort((a, b) => b.count - a.count).slice(0, PANELS);
}

function chart(group, from, to, outside) {
  const values = Object.values(group.lines).flat();
  const top = 1.1 * Math.max(...values.map((row) => row.value), 1e-12);
  const span = Math.max(to - from, 1);
  const x = (time) => LEFT + ((time - from) / span) * (WIDTH - LEFT - 4);
  const y = (value) => TOP + (1 - Math.max(value, 0) / top) * (HEIGHT - TOP - BOTTOM);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.append(shape("title", {}, group.name));
  for (const part of [0, 0.5, 1]) {
    const value = (part * top) / 1.1;
    svg.append(shape("line", { class: "axis", x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { x: LEFT - 4, y: y(value) + 4, "text-anchor": "end" },
      Number(value.toPrecision(3))));
  }
  for (const time of outside) {
    svg.append(shape("line", { class: "outside", x1: x(time), x2: x(time), y1: TOP, y2: y(0) }));
  }
  const shown = (time) => new Date(time).toISOString().slice(5, 13).replace("T", " ") + "Z";
  svg.append(shape("text", { x: LEFT, y: HEIGHT - 5 }, shown(from)));
  svg.append(shape("text", { x: WIDTH - 4, y: HEIGHT - 5, "text-anchor": "end" }, shown(to)));
  for (const [statistic, [, colour, dash]] of Object.entries(LINES)) {
    const points = (group.lines[statistic] ?? []).map((row) => `${x(row.time)},${y(row.value)}`);
    if (!points.length) continue;
    const line = { points: points.join(" "), stroke: colour, "stroke-dasharray": dash };
    svg.append(shape("polyline", line));
    const [cx, cy] = points.at(-1).split(",");
    svg.append(shape("circle", { cx, cy, r: 2.5, fill: colour }));
  }
  const figure = element("figure");
  figure.append(element("figcaption", group.name), svg);
  return figure;
}

async function refresh() {
  const flavour = byId("flavour").value;
  const to = await newest(flavour);
  if (to === null) {
    byId("note").textContent = `no ${flavour} analyses yet`;
    byId("panels").replaceChildren();
    return;
  }
  const from = new Date(to - 3600000 * Number(byId("hours").value));
  const rows = await rowsOf(flavour, from, to);
  const flagged = rows.filter((row) => row.statistic === "outside_limits" && row.value > 0);
  const outside = flagged.map((row) => row.time);
  const analyses = new Set(rows.map((row) => row.analysis_id)).size;
  byId("note").textContent = `${analyses} analyses up to ${to.toISOString().slice(0, 16)}Z, `
    + `${outside.length} outside their control limits (red bars); SI units`;
  const first = Math.min(...rows.map((row) => row.time), to.getTime());
  byId("panels").replaceChildren(
    ...grouped(rows).map((group) => chart(group, first, to.getTime(), outside)));
}

byId("legend").append(...Object.values(LINES).map(([name, colour]) => {
  const item = element("li", name);
  const mark = element("b");
  mark.style.background = colour;
  item.prepend(mark);
  return item;
}));
const fail = (error) => { byId("note").textContent = `no answer: ${error.message}`; };
const CHOICES = ["flavour", "hours"];
for (const id of CHOICES) {
  byId(id).addEventListener("change", () => {
    history.replaceState(null, "", "#" + new URLSearchParams(CHOICES.map((name) => [name, byId(name).value])));
    refresh().catch(fail);
  });
}
function readChoice() {
  for (const [id, value] of new URLSearchParams(location.hash.slice(1))) {
    const known = CHOICES.includes(id) && [...byId(id).options].some((option) => option.value === value);
    if (known) byId(id).value = value;
  }
}
readChoice();
window.addEventListener("hashchange", () => {
  readChoice();
  refresh().catch(fail);
});
byId("choice").addEventListener("submit", (event) => event.preventDefault());
keyForm(() => refresh().catch(fail));

async function again() {
  if (!document.hidden) await refresh().catch(fail);
  setTimeout(again, EVERY);
}
again();
