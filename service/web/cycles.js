// The board of cycles: a line for each hour, its early and its final analysis; a click explains one.

import { apiUrl, byId, element, fillRows, getJson, keyForm, send, tableRow } from "./api.js";
import { showCalls } from "./calls.js";

const EVERY = 10000;
const PAGE = 500;
const FLAVOURS = ["early", "final"];
const COLUMNS = [
  ["state", "where the cycle is in its life"],
  ["after cut-off", "from the cut-off to the analysis being readable; of a cycle that is due, to the decision"],
  ["used / late / rejected", "observed values"],
  ["skill", "1 − (RMSE of analysis / RMSE of background)², mean over the networks and variables withheld"],
  ["flags", "of the analysis, and what the cycle says of itself"],
];
const MOODS = { published: "good", failed: "bad", skipped: "bad", cancelled: "bad", due: "busy", submitted: "busy" };
const DEFAULTS = { hours: "24", state: "", cycle: "" };
const manifests = new Map();
let state = readState(), explained = "", turn = 0;

function readState() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, given[name] ?? value]));
}

function change(values) {
  Object.assign(state, values);
  history.replaceState(null, "", "#" + new URLSearchParams(Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name])));
  return refresh().catch(fail);
}

const when = (time) => (time ? time.replace("T", " ").slice(0, 16) + "Z" : "–");
const minutes = (from, to) => Math.round((Date.parse(to) - Date.parse(from)) / 60000);

// Interval between the first and the last of the cycles shown, to query analyses and scores with.
function period(cycles) {
  const times = cycles.map((cycle) => cycle.valid_time).sort();
  return { valid_from: times[0], valid_to: times.at(-1) };
}

const analysesQuery = (cycles) => ({ kind: "filtering", limit: 100, ...period(cycles) });
const skillQuery = (cycles) => ({ statistic: "withheld_rmse_analysis,withheld_rmse_background", layer: "all", limit: 20000, ...period(cycles) });

async function pages(path, query) {
  const items = [];
  for (let cursor = ""; cursor !== null;) {
    const page = await getJson(apiUrl(path, { ...query, cursor }));
    items.push(...page.items);
    cursor = page.next_cursor;
  }
  return items;
}

// Analyses never change: those that are known are not asked for again.
async function readManifests(cycles) {
  const missing = cycles.map((cycle) => cycle.analysis_id).filter((id) => id && !manifests.has(id));
  if (missing.length > 3) {
    const found = await pages("v1/analyses", analysesQuery(cycles));
    for (const analysis of found) manifests.set(analysis.id, analysis);
  }
  await Promise.all(missing.filter((id) => !manifests.has(id)).map(async (id) => {
    manifests.set(id, await getJson(apiUrl(`v1/analyses/${encodeURIComponent(id)}`)).catch(() => null));
  }));
}

// Mean over networks and variables, each by its number of withheld values.
export function skills(rows) {
  const errors = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row.analysis_id, row.network, row.variable]);
    const pair = errors.get(key) ?? { id: row.analysis_id };
    pair[row.statistic] = row.value;
    pair.count = row.count;
    errors.set(key, pair);
  }
  const sums = new Map();
  for (const { id, count, withheld_rmse_analysis: analysis, withheld_rmse_background: background } of errors.values()) {
    if (!(background > 0) || analysis === undefined) continue;
    const sum = sums.get(id) ?? { weight: 0, skill: 0 };
    sum.weight += count;
    sum.skill += count * (1 - (analysis / background) ** 2);
    sums.set(id, sum);
  }
  return new Map([...sums].map(([id, { weight, skill }]) => [id, skill / weight]));
}

// Minutes, hours or days: cycles of a backlog may be years behind.
function duration(minutes) {
  const [size, unit] = [[1440, "d"], [60, "h"]].find(([size]) => Math.abs(minutes) >= 2 * size) ?? [1, "min"];
  return `${Math.round(minutes / size)} ${unit}`;
}

// To the publication, or to the decision where there is none yet.
function lateness(cycle) {
  if (cycle.published) return duration(minutes(cycle.cut_off, cycle.published));
  return cycle.decided ? `due: ${duration(cycle.behind_seconds / 60)}` : "";
}

function counts(observations) {
  if (!observations) return "";
  const { used = 0, late = 0, ...checks } = observations;
  return `${used} / ${late} / ${Object.values(checks).reduce((sum, count) => sum + count, 0)}`;
}

const words = (name) => name.replaceAll("_", " ");

// Flags of the analysis, then the message of the cycle, without repeats.
function remarks(cycle, analysis) {
  const flags = new Set([...(cycle.caught_up ? ["caught_up"] : []), ...(analysis?.flags ?? [])]);
  return [[...flags].map(words).join(", "), cycle.message].filter(Boolean).join(" · ");
}

function cellsOf(cycle, skill) {
  if (!cycle) return COLUMNS.map(() => "");
  const button = element("button", cycle.state, MOODS[cycle.state] ?? "");
  button.type = "button";
  button.setAttribute("aria-label", `${cycle.id}: ${cycle.state}`);
  if (cycle.id === state.cycle) button.setAttribute("aria-current", "true");
  button.addEventListener("click", () => choose(cycle.id));
  const mark = element("span");
  mark.append(button, element("small", cycle.revision > (cycle.flavour === "final" ? 2 : 1) ? ` v${cycle.revision}` : ""));
  const analysis = manifests.get(cycle.analysis_id), shown = skill.get(cycle.analysis_id);
  return [mark, lateness(cycle), counts(analysis?.observations), shown === undefined ? "" : `${(100 * shown).toFixed(0)} %`.replace("-", "−"), remarks(cycle, analysis)];
}

// A row of the board; on narrow screens the style sheet stacks and labels its cells.
function line(time, both, skill) {
  const row = element("tr"), head = element("th", when(time));
  Object.assign(head, { scope: "row", role: "rowheader" });
  for (const flavour of FLAVOURS) {
    const cells = [...tableRow(cellsOf(both[flavour], skill)).cells], cycle = both[flavour];
    cells.forEach((cell, i) => {
      cell.className = ["first", "", "", "", "flags"][i];
      cell.dataset.name = i ? COLUMNS[i][0] : flavour;
      cell.role = "cell";
    });
    if (cycle) cells[1].title = `cut-off ${when(cycle.cut_off)}, published ${when(cycle.published)}`;
    row.append(...cells);
  }
  row.prepend(head);
  row.role = "row";
  return row;
}

async function refresh() {
  const mine = ++turn;
  for (const name of ["hours", "state"]) byId(name).value = state[name];
  const query = { limit: Math.min(PAGE, 2 * Number(state.hours)), state: state.state };
  const { items } = await getJson(apiUrl("v1/cycles", query));
  let skill = new Map();
  if (items.length) {
    const [, rows] = await Promise.all([readManifests(items), pages("v1/verification", skillQuery(items))]);
    skill = skills(rows);
  }
  if (mine !== turn) return;
  draw(items, skill);
  const calls = [["v1/cycles", query], ...(items.length ? [["v1/analyses", analysesQuery(items)], ["v1/verification", skillQuery(items)]] : [])];
  showCalls(byId("cycles").parentElement, "board", calls.map((call) => ({ url: apiUrl(...call) })));
  const chosen = items.find((cycle) => cycle.id === state.cycle);
  if (explained !== `${state.cycle} ${chosen?.state} ${chosen?.revision}`) await explain(chosen);
}

function draw(items, skill) {
  byId("note").textContent = items.length ? `${items.length} cycles up to ${when(items[0].valid_time)}`
    : state.state ? `No cycle is ${state.state}.` : "No cycle yet: see appa cycles init.";
  const hours = new Map();
  for (const cycle of items) hours.set(cycle.valid_time, { ...hours.get(cycle.valid_time), [cycle.flavour]: cycle });
  fillRows(byId("cycles"), [...hours].map(([time, both]) => line(time, both, skill)));
}

// A click scrolls to the explanation; closing it scrolls back to the board.
async function choose(cycle) {
  await change({ cycle });
  byId("explained").scrollIntoView({ block: "nearest" });
}

async function explain(chosen) {
  const key = state.cycle;
  byId("explained").hidden = !key;
  byId("rerun-sure").hidden = true;
  if (!key) {
    explained = "";
    return;
  }
  const url = apiUrl(`v1/cycles/${encodeURIComponent(key)}/explain`), found = await getJson(url);
  if (key !== state.cycle) return;
  explained = `${key} ${found.cycle.state} ${found.cycle.revision}`;
  if (chosen) explained = `${key} ${chosen.state} ${chosen.revision}`;
  byId("rerun-part").hidden = found.cycle.flavour !== "final";
  byId("explanation").replaceChildren(...explanation(found));
  showCalls(byId("rerun-part"), "this cycle", [{ url }, ...(key.endsWith("_final") ? [{ url: rerunUrl(), method: "POST", body: {} }] : [])]);
}

function explanation({ cycle, revisions, window_start: start, window_end: end, background, flags, used, late, rejected, changed }) {
  const facts = [
    ["state", [cycle.state, cycle.message].filter(Boolean).join(": ")],
    ["cut-off", `${when(cycle.cut_off)}, complete ${when(cycle.decided)}, published ${when(cycle.published)}`],
    ["window", start ? `${when(start)} to ${when(end)}` : "–"],
    ["background", Object.entries(background).map(([name, value]) => `${words(name)} ${value}`).join(", ") || "–"],
    ["flags", flags.map(words).join(", ") || "none"],
    ["revisions", revisions.join(", ") || "–"],
  ];
  const list = element("dl");
  for (const [name, value] of facts) list.append(element("dt", name), element("dd", value));
  const parts = [element("h2", cycle.id), list];
  if (cycle.analysis_id) {
    const link = element("a", "on the map, with its observations");
    link.href = "map.html#" + new URLSearchParams({ time: cycle.valid_time, result: cycle.analysis_id, obs: "background" });
    parts.push(link);
  }
  if (used) parts.push(table("used", ["network", "values"], Object.entries(used)));
  if (late.length) parts.push(table("after the cut-off", ["network", "values", "first", "last"], late.map((l) => [l.network, l.count, when(l.first), when(l.last)])));
  const why = (rows) => rows.map((r) => [r.network, r.count, words(r.outcome), r.meaning]);
  if (rejected.length) parts.push(table("rejected", ["network", "values", "check", "meaning"], why(rejected)));
  if (changed) {
    parts.push(element("p", `Against ${changed.from_analysis} (${changed.from_flavour}, revision ${changed.from_revision}), ${changed.kept} values were used by both.`));
    parts.push(table("used only now", ["network", "values"], Object.entries(changed.added)));
    if (changed.dropped.length) parts.push(table("used before, rejected now", ["network", "values", "check", "meaning"], why(changed.dropped)));
  }
  return parts;
}

function table(title, names, rows) {
  const made = element("table"), head = element("tr");
  head.append(...names.map((name) => Object.assign(element("th", name), { scope: "col" })));
  made.append(element("caption", title), head, ...rows.map((row) => tableRow(row)));
  return made;
}

const rerunUrl = () => apiUrl(`v1/cycles/${encodeURIComponent(state.cycle)}/rerun`);

byId("close").addEventListener("click", async () => {
  const { cycle } = state;
  await change({ cycle: "" });
  byId("cycles").querySelector(`[aria-label^="${CSS.escape(cycle)}:"]`)?.focus();
});
byId("rerun").addEventListener("click", () => {
  const sure = byId("rerun-sure");
  byId("rerun-said").textContent = "";
  sure.textContent = `yes, ${state.cycle} with all that has arrived`;
  sure.hidden = false;
  sure.focus();
});
byId("rerun-sure").addEventListener("click", async () => {
  byId("rerun-sure").hidden = true;
  try {
    const cycle = await send("POST", rerunUrl(), {});
    byId("rerun-said").textContent = `${cycle.id} is ${cycle.state} as revision ${cycle.revision}`;
    await refresh();
  } catch (error) {
    byId("rerun-said").textContent = error.message;
  }
});

const fail = (error) => { byId("note").textContent = `no answer: ${error.message}`; };
byId("columns").append(...FLAVOURS.flatMap(() => COLUMNS.map(([name, meaning], i) =>
  Object.assign(element("th", name, i ? "" : "first"), { title: meaning, scope: "col", role: "columnheader" }))));
for (const name of ["hours", "state"]) byId(name).addEventListener("change", (event) => change({ [name]: event.target.value }));
byId("choice").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", () => {
  state = readState();
  refresh().catch(fail);
});
keyForm(() => refresh().catch(fail));

async function again() {
  if (!document.hidden) await refresh().catch(fail);
  setTimeout(again, EVERY);
}
again();
