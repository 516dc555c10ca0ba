// Departures and errors at withheld stations over the last days, a panel for each network and
// variable. Text only ever goes into textContent, so nothing that a sender wrote is read as markup.

import { apiUrl, byId, element, getJson, keyForm } from "./api.js";
import { unitsOf } from "./axis.js";
import { callsOf, showCalls } from "./calls.js";
import { outsideLimits } from "./limits.js";
import { compact, saveCharts } from "./picture.js";
import { chart, histogram, LIMITS, SIDES } from "./verification_charts.js";

const EVERY = 60000;
const PANELS = 24;
const RATIO = "ratio";
const units = {}; // by variable
// Views: lines by statistic, each a name, colour and dash; `perfect` is the value of a consistent
// ensemble; `signed` values lie on both sides of 0; `units` are those of the axis, else those of the variable;
// `overall` are lines with other units, shown for all networks together.
const VIEWS = {
  departures: {
    lines: {
      rms_background: ["O−B", "#8d99ae", ""],
      rms_analysis: ["O−A", "#1f77b4", ""],
      withheld_rmse_background: ["withheld O−B", "#edae49", "5 3"],
      withheld_rmse_analysis: ["withheld O−A", "#d1495b", "5 3"],
      chi2: ["chi-square of innovations", "#6a4c93", ""],
    },
    overall: ["chi2"],
  },
  bias: {
    lines: {
      bias_background: ["mean O−B", "#8d99ae", ""],
      bias_analysis: ["mean O−A", "#1f77b4", ""],
      withheld_bias_background: ["withheld, mean O−B", "#edae49", "5 3"],
      withheld_bias_analysis: ["withheld, mean O−A", "#d1495b", "5 3"],
    },
    signed: true,
  },
  ensemble: {
    lines: {
      spread_skill: ["spread over skill, O−B", "#8d99ae", ""],
      withheld_spread_skill_background: ["withheld, background", "#edae49", "5 3"],
      withheld_spread_skill_analysis: ["withheld, analysis", "#d1495b", "5 3"],
      chi2: ["chi-square of innovations", "#6a4c93", ""],
    },
    perfect: 1,
    units: RATIO,
  },
  errors: {
    lines: {
      error: ["observation error, actual", "#1f77b4", ""],
      desroziers_error: ["observation error, desired", "#1f77b4", "5 3"],
      spread: ["background spread, actual", "#d1495b", ""],
      desroziers_spread: ["background spread, desired", "#d1495b", "5 3"],
    },
  },
  counts: {
    lines: {
      used: ["values used", "#8d99ae", ""],
      used_new: ["new values used", "#1f77b4", ""],
    },
    units: "values",
  },
};
const SHADED = ["shaded: within the control limits of its line", "#8d99ae66", ""];
const FLAVOURS = ["final", "early", "job"];
const ALL = "all"; // networks, or variables, together
const view = () => VIEWS[byId("show").value];
const statistics = (network = ALL) => Object.keys(view().lines).filter((name) => network === ALL || !view().overall?.includes(name))
  .flatMap((name) => [name, ...LIMITS.map((ending) => name + ending)]);

// The analyses of a flavour; those of jobs have no flavour, which the list cannot filter by.
async function analysesOf(flavour, query) {
  const url = apiUrl("v1/analyses", { kind: "filtering", flavour: flavour === "job" ? "" : flavour, limit: 500, ...query });
  const { items } = await getJson(url);
  return { url, items: items.filter((analysis) => flavour !== "job" || !analysis.flavour) };
}

async function newest(flavour) {
  const { items } = await analysesOf(flavour, flavour === "job" ? { limit: 100 } : { latest: true });
  return items.reduce((last, one) => (last && last.valid_time >= one.valid_time ? last : one), null);
}

const seriesQuery = (flavour, from, to, about) => ({
  statistic: statistics(about.network || ALL).join(","), layer: ALL, flavour, valid_from: from.toISOString(), valid_to: to.toISOString(), limit: 20000, ...about,
});

async function rowsOf(flavour, from, to) {
  const query = seriesQuery(flavour, from, to, { network: byId("network").value });
  const rows = [];
  for (let cursor = ""; cursor !== null;) {
    const page = await getJson(apiUrl("v1/verification", { ...query, cursor }));
    rows.push(...page.items);
    cursor = page.next_cursor;
  }
  return rows.map((row) => ({ ...row, time: Date.parse(row.valid_time) }));
}

// Panels ordered by number of values; all networks together first.
function grouped(rows) {
  const groups = new Map();
  const [whole, single] = [ALL, ""].map((network) => new Set(statistics(network)));
  for (const row of rows) {
    if (!(row.network === ALL ? whole : single).has(row.statistic)) continue;
    const about = row.variable === ALL ? "" : `: ${row.variable.replaceAll("_", " ")}`;
    const name = row.network === ALL ? "all networks" : row.network + about;
    if (!groups.has(name)) groups.set(name, { name, network: row.network, variable: row.variable, count: 0, lines: {} });
    const group = groups.get(name);
    if (row.statistic in view().lines) group.count = Math.max(group.count, row.network === ALL ? Infinity : row.count);
    (group.lines[row.statistic] ??= []).push(row);
  }
  return [...groups.values()].sort((a, b) => b.count - a.count).slice(0, PANELS);
}

// Rank histograms of withheld values among the members, summed over analyses, from their score files.
async function histograms(flavour, from, to) {
  const { url, items } = await analysesOf(flavour, { valid_from: from.toISOString(), valid_to: to.toISOString() });
  const network = byId("network").value;
  const withheld = items.flatMap((analysis) => analysis.scores.withheld ?? [])
    .filter((line) => !network || line.network === network);
  const ranks = Object.keys(SIDES).map((side) => {
    const found = withheld.map((line) => line[side]?.ranks).filter(Boolean);
    const length = found[0]?.length ?? 0; // the newest analyses' number of members
    const alike = found.filter((ranks) => ranks.length === length);
    return { side, counts: Array.from({ length }, (_, i) => alike.reduce((sum, ranks) => sum + ranks[i], 0)) };
  }).filter(({ counts }) => counts.some(Boolean));
  return { url, ranks };
}

// If the link names no flavour, the first available.
async function chosenFlavour() {
  const { value } = byId("flavour"), named = new URLSearchParams(location.hash.slice(1)).has("flavour");
  for (const flavour of named ? [value] : [value, ...FLAVOURS]) {
    const found = await newest(flavour);
    if (found) return [flavour, found];
  }
  return [value, null];
}

let turn = 0, last = null;
async function refresh() {
  const mine = ++turn;
  const [flavour, found] = await chosenFlavour();
  if (mine !== turn) return; // something else was chosen meanwhile
  byId("flavour").value = flavour;
  last = found;
  if (last === null) {
    byId("note").textContent = `no ${flavour} analyses yet`;
    for (const id of ["panels", "ranks", "outside"]) byId(id).replaceChildren();
    return legend();
  }
  const to = new Date(last.valid_time), from = new Date(to - 3600000 * Number(byId("hours").value));
  const asked = [rowsOf(flavour, from, to), outsideLimits(flavour, from, to), ...(byId("show").value === "ensemble" ? [histograms(flavour, from, to)] : [])];
  const [rows, limits, ranks] = await Promise.all(asked);
  if (mine !== turn) return;
  draw(rows, limits, ranks, to);
  for (const [group, figure] of shown) {
    const { network, variable } = group;
    figure.append(callsOf(group.name, [{ url: apiUrl("v1/verification", seriesQuery(flavour, from, to, { network, variable })) }]));
  }
  if (ranks) byId("ranks").lastElementChild?.append(callsOf("ranks of withheld values", [{ url: ranks.url }]));
  showCalls(byId("outside"), "analyses outside their control limits", [{ url: limits.url }]);
}

// A mass fraction has the unit 1, which says nothing on an axis.
const unitsOnAxis = (variable) => unitsOf(variable === "specific_humidity" ? "kg kg-1" : units[variable] ?? "");
const axisUnits = ({ variable }) => view().units ?? (variable === ALL ? RATIO : unitsOnAxis(variable));

let shown = []; // what each panel is about, and the panel
function draw(rows, { analyses: flagged, lines }, ranks, to) {
  const analyses = new Set(rows.map((row) => row.analysis_id)).size, network = byId("network").value;
  byId("note").textContent = `${analyses} ${analyses === 1 ? "analysis" : "analyses"} up to ${to.toISOString().slice(0, 16)}Z, `
    + `${flagged} outside their control limits (red bars); SI units`;
  const outside = lines.filter((line) => !network || line.network === network);
  const first = rows[0]?.time ?? to.getTime(); // the oldest comes first
  byId("ranks").replaceChildren(...(ranks?.ranks ?? []).map(histogram));
  shown = grouped(rows).map((group) => [group, chart(group, [first, to.getTime()], outside, view(), axisUnits(group))]);
  byId("panels").replaceChildren(...shown.map(([, figure]) => figure));
  byId("outside").replaceChildren(...outside.map((line) => element("li", `${new Date(line.time).toISOString().slice(0, 16)}Z: ${line.text}`)));
  legend();
}

function save() {
  const figures = [...document.querySelectorAll("#ranks figure, #panels figure")];
  if (!figures.length) return null;
  const chosen = CHOICES.map((id) => byId(id).selectedOptions[0].text), simulated = last.flags.includes("simulated");
  const about = [last.provenance?.checkpoint, simulated ? "simulated" : ""].filter(Boolean).join(" · ");
  return saveCharts(byId("panels"), figures.map((figure) => ({ svg: figure.querySelector("svg"), caption: figure.querySelector("figcaption").textContent })), {
    title: `Verification: ${chosen[1]}, ${chosen[0]} analyses, ${chosen[2]} networks, last ${chosen[3]}`,
    lines: [byId("note").textContent, about].filter(Boolean), columns: Math.min(3, figures.length),
    legend: legendOf(), name: `appa_verification_${compact(last.valid_time)}`,
  });
}

const banded = () => byId("panels").querySelector(".band") !== null;
const legendOf = () => [...Object.values(view().lines), ...(banded() ? [SHADED] : [])];

function legend() {
  byId("legend").replaceChildren(...legendOf().map(([name, colour, dash]) => {
    const item = element("li", name), mark = element("b", undefined, name === SHADED[0] ? "area" : "");
    mark.style.background = dash ? `repeating-linear-gradient(90deg, ${colour} 0 5px, transparent 5px 8px)` : colour;
    item.prepend(mark);
    return item;
  }));
}

async function networks() {
  const known = await getJson(apiUrl("v1/capabilities"));
  Object.assign(units, known.variables);
  byId("network").append(...known.networks.map((name) => element("option", name)));
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
byId("save").addEventListener("click", () => save()?.catch(fail));
byId("choice").addEventListener("submit", (event) => event.preventDefault());
keyForm(async () => {
  if (byId("network").options.length === 1) await networks().catch(() => {}); // refused without a key
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
