// Departures and errors at withheld stations over the last days, a panel for each network and
// variable. Text only ever goes into textContent, so nothing that a sender wrote is read as markup.

import { apiUrl, byId, element, getJson, keyForm, shape } from "./api.js";
import { showCalls } from "./calls.js";

const EVERY = 60000;
const PANELS = 24;
const WIDTH = 420, HEIGHT = 150, LEFT = 44, BOTTOM = 20, TOP = 6;
// Lines of each view: name, colour, dash. `perfect` is the value of a consistent ensemble.
const VIEWS = {
  departures: {
    rms_background: ["O−B", "#8d99ae", ""],
    rms_analysis: ["O−A", "#1f77b4", ""],
    withheld_rmse_background: ["withheld O−B", "#edae49", "5 3"],
    withheld_rmse_analysis: ["withheld O−A", "#d1495b", "5 3"],
    chi2: ["chi-square of innovations", "#6a4c93", ""],
  },
  ensemble: {
    spread_skill: ["spread over skill, O−B", "#8d99ae", ""],
    withheld_spread_skill_background: ["withheld, background", "#edae49", "5 3"],
    withheld_spread_skill_analysis: ["withheld, analysis", "#d1495b", "5 3"],
  },
  errors: {
    error: ["observation error, actual", "#1f77b4", ""],
    desroziers_error: ["observation error, desired", "#1f77b4", "5 3"],
    spread: ["background spread, actual", "#d1495b", ""],
    desroziers_spread: ["background spread, desired", "#d1495b", "5 3"],
  },
};
const SIDES = { background: "#edae49", analysis: "#d1495b" };
const lines = () => VIEWS[byId("show").value];

async function newest(flavour) {
  const wanted = flavour === "job" ? "" : flavour;
  const { items } = await getJson(apiUrl("v1/analyses", { kind: "filtering", latest: true, flavour: wanted }));
  return items.length ? new Date(items[0].valid_time) : null;
}

async function rowsOf(flavour, from, to) {
  const query = {
    statistic: [...Object.keys(lines()), "outside_limits"].join(","),
    network: byId("network").value,
    layer: "all",
    flavour: flavour,
    valid_from: from.toISOString(),
    valid_to: to.toISOString(),
    limit: 20000,
  };
  calls = [{ url: apiUrl("v1/verification", query) }];
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

// Ranks of withheld values among the members, added up over analyses; a file of scores has all of them.
async function histograms(flavour, from, to) {
  const query = {
    kind: "filtering", flavour: flavour === "job" ? "" : flavour,
    valid_from: from.toISOString(), valid_to: to.toISOString(), limit: 500,
  };
  const url = apiUrl("v1/analyses", query), network = byId("network").value;
  calls.push({ url });
  const { items } = await getJson(url);
  const withheld = items.flatMap((analysis) => analysis.scores.withheld ?? [])
    .filter((line) => !network || line.network === network);
  return Object.keys(SIDES).map((side) => {
    const found = withheld.map((line) => line[side]?.ranks).filter(Boolean);
    const length = found[0]?.length ?? 0; // the newest analyses' number of members
    const alike = found.filter((ranks) => ranks.length === length);
    return { side, counts: Array.from({ length }, (_, i) => alike.reduce((sum, ranks) => sum + ranks[i], 0)) };
  }).filter(({ counts }) => counts.some(Boolean));
}

function histogram({ side, counts }) {
  const total = counts.reduce((sum, count) => sum + count, 0), flat = total / counts.length;
  const top = 1.1 * Math.max(...counts), width = (WIDTH - LEFT - 4) / counts.length;
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const name = `ranks of ${total} withheld values, ${side}`;
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.append(shape("title", {}, `${name}: ${counts.join(", ")}`));
  counts.forEach((count, i) => svg.append(shape("rect", {
    x: LEFT + i * width + 1, width: Math.max(1, width - 2), y: y(count), height: y(0) - y(count),
    fill: SIDES[side], "data-count": count,
  })));
  svg.append(shape("line", { class: "perfect", x1: LEFT, x2: WIDTH - 4, y1: y(flat), y2: y(flat) }));
  svg.append(shape("text", { x: LEFT - 4, y: y(flat) + 4, "text-anchor": "end" }, Number(flat.toPrecision(3))));
  svg.append(shape("text", { x: LEFT, y: HEIGHT - 5 }, "below all members"));
  svg.append(shape("text", { x: WIDTH - 4, y: HEIGHT - 5, "text-anchor": "end" }, "above all"));
  const figure = element("figure");
  figure.append(element("figcaption", name), svg);
  return figure;
}

function chart(group, from, to, outside) {
  const values = Object.values(group.lines).flat();
  const least = byId("show").value === "ensemble" ? 1 : 1e-12; // the perfect value is always in sight
  const top = 1.1 * Math.max(...values.map((row) => row.value), least);
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
  if (byId("show").value === "ensemble") {
    svg.append(shape("line", { class: "perfect", x1: LEFT, x2: WIDTH, y1: y(1), y2: y(1) }));
  }
  for (const time of outside) {
    svg.append(shape("line", { class: "outside", x1: x(time), x2: x(time), y1: TOP, y2: y(0) }));
  }
  const shown = (time) => new Date(time).toISOString().slice(5, 13).replace("T", " ") + "Z";
  svg.append(shape("text", { x: LEFT, y: HEIGHT - 5 }, shown(from)));
  svg.append(shape("text", { x: WIDTH - 4, y: HEIGHT - 5, "text-anchor": "end" }, shown(to)));
  for (const [statistic, [, colour, dash]] of Object.entries(lines())) {
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

// Panels of values alone: counts of all networks have none of these statistics.
let calls = [], turn = 0;
async function refresh() {
  const mine = ++turn, flavour = byId("flavour").value;
  legend();
  const to = await newest(flavour);
  if (to === null) {
    byId("note").textContent = `no ${flavour} analyses yet`;
    byId("panels").replaceChildren();
    byId("ranks").replaceChildren();
    return;
  }
  const from = new Date(to - 3600000 * Number(byId("hours").value));
  const rows = await rowsOf(flavour, from, to);
  const ranks = byId("show").value === "ensemble" ? await histograms(flavour, from, to) : [];
  if (mine !== turn) return; // something else was chosen meanwhile
  showCalls(calls);
  const flagged = rows.filter((row) => row.statistic === "outside_limits" && row.value > 0);
  const outside = flagged.map((row) => row.time);
  const analyses = new Set(rows.map((row) => row.analysis_id)).size;
  byId("note").textContent = `${analyses} analyses up to ${to.toISOString().slice(0, 16)}Z, `
    + `${outside.length} outside their control limits (red bars); SI units`;
  const first = Math.min(...rows.map((row) => row.time), to.getTime());
  byId("ranks").replaceChildren(...ranks.map(histogram));
  byId("panels").replaceChildren(
    ...grouped(rows).map((group) => chart(group, first, to.getTime(), outside)));
}

function legend() {
  byId("legend").replaceChildren(...Object.values(lines()).map(([name, colour, dash]) => {
    const item = element("li", name);
    const mark = element("b");
    mark.style.background = dash ? `repeating-linear-gradient(90deg, ${colour} 0 5px, transparent 5px 8px)` : colour;
    item.prepend(mark);
    return item;
  }));
}
async function networks() {
  const known = (await getJson(apiUrl("v1/capabilities"))).networks;
  byId("network").append(...known.map((name) => element("option", name)));
}
const fail = (error) => { byId("note").textContent = `no answer: ${error.message}`; };
const CHOICES = ["flavour", "show", "network", "hours"];
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
window.addEventListener("hashchange", () => {
  readChoice();
  refresh().catch(fail);
});
byId("choice").addEventListener("submit", (event) => event.preventDefault());
keyForm(() => {
  if (byId("network").options.length === 1) networks().catch(() => {}); // refused without a key
  refresh().catch(fail);
});

async function again() {
  if (!document.hidden) await refresh().catch(fail);
  setTimeout(again, EVERY);
}
networks().catch(() => {}).then(() => {
  readChoice();
  again();
});
