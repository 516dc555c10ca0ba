// The map: what is shown is in the address, so that every state is a link.

import { apiUrl, byId, element, getJson, keyForm } from "./api.js";
import { ticks, unitsOf } from "./axis.js";
import { showCalls } from "./calls.js";
import { Chart } from "./chart.js";
import { clock, differenceQuery, follow, followOther, label, middle, others, showThreshold, titleOf, toSi } from "./comparison.js";
import { Field } from "./field.js";
import { ObservationPanel } from "./observation_panel.js";
import { compact, saveCharts, saveMap } from "./picture.js";
import { showPoint } from "./point.js";

const NAMES = ["time", "result", "field", "level", "stat", "threshold", "direction", "other", "view", "contours", "barbs", "point",
  "obs", "network", "variable", "layer", "outcome", "row"];
const DEFAULTS = { field: "t2m", level: "500", stat: "mean", view: "global", direction: "above", contours: "1", barbs: "0", obs: "" };
const chart = new Chart(byId("map"));
const cache = new Map();
const panel = new ObservationPanel(chart, change);
let state = readState(), timeline = [], catalogue = null, colours = null, playing = null, turn = 0, settled = null;

function readState() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return { ...DEFAULTS, ...Object.fromEntries(NAMES.filter((n) => n in given).map((n) => [n, given[n]])) };
}

function change(values) {
  Object.assign(state, values);
  address();
  return show();
}

function address() {
  const kept = NAMES.filter((n) => state[n] && state[n] !== DEFAULTS[n]).map((n) => [n, state[n]]);
  const hash = "#" + new URLSearchParams(kept);
  if (hash !== location.hash) history.replaceState(null, "", hash);
}

function say(text, bad) {
  byId("message").textContent = text;
  byId("message").className = bad ? "bad" : "";
}

const entry = () => timeline.find((item) => item.time === state.time);

function choose() {
  if (!timeline.length) return null;
  if (!entry()) state.time = (timeline.filter((item) => item.results.some((r) => r.lead_hours === 0)).at(-1) ?? timeline.at(-1)).time;
  const { results } = entry();
  return results.find((r) => r.id === state.result) ?? results[0];
}

function options(id, items, value) {
  byId(id).replaceChildren(...items.map(([key, text]) => Object.assign(element("option", text), { value: key })));
  byId(id).value = value;
}

function controls(result) {
  const slider = byId("time");
  Object.assign(slider, { max: timeline.length - 1, value: timeline.indexOf(entry()) });
  const when = clock(state.time);
  slider.setAttribute("aria-valuetext", when);
  byId("when").textContent = when;
  options("result", entry().results.map((r) => [r.id, label(r)]), result.id);
  const usable = catalogue.fields.filter((f) => f.statistics.length);
  if (!usable.some((f) => f.field === state.field)) state.field = usable[0].field;
  options("field", usable.map((f) => [f.field, f.long_name]), state.field);
  const field = usable.find((f) => f.field === state.field);
  const levels = catalogue.levels.map((level) => [String(level), `${level} hPa`]);
  if (!levels.some(([level]) => level === state.level)) state.level = levels.at(-1)?.[0] ?? "";
  options("level", levels, state.level);
  byId("level").parentElement.hidden = !field.leveled;
  const against = others(timeline, entry(), result);
  const stats = field.statistics.filter((s) => s !== "difference" || against.length).flatMap((s) => (s === "member"
    ? Array.from({ length: catalogue.members }, (_, i) => [`member:${i}`, `member ${i}`])
    : [[s, s]]));
  if (!stats.some(([s]) => s === state.stat)) state.stat = stats[0][0];
  options("stat", stats, state.stat);
  showThreshold(state, field);
  byId("other-part").hidden = state.stat !== "difference";
  if (state.stat === "difference") {
    if (!against.some(([id]) => id === state.other)) state.other = against[0][0];
    options("other", against, state.other);
  }
  byId("view").value = state.view;
  byId("contours").checked = state.contours === "1";
  byId("barbs").checked = state.barbs === "1";
  return field;
}

async function load(query) {
  const key = JSON.stringify(query);
  if (!cache.has(key)) {
    cache.set(key, Field.load(query).catch((error) => {
      cache.delete(key);
      throw error;
    }));
    if (cache.size > 60) cache.delete(cache.keys().next().value);
  }
  return cache.get(key);
}

async function show() {
  const mine = ++turn;
  const result = choose();
  if (!result) { // above the map, which is taller than many windows
    byId("title").textContent = "No analysis yet: send observations and submit a job, or run cycles.";
    return say("");
  }
  try {
    if (catalogue?.result !== result.id) {
      catalogue = await getJson(apiUrl("v1/fields/catalogue", { result: result.id }));
      if (mine !== turn) return;
    }
    const field = controls(result);
    const shared = { result: result.id, time: state.time, view: state.view, width: 1440, height: 721 };
    const level = field.leveled ? { level: state.level } : {};
    const plain = { ...shared, ...level, field: state.field, statistic: "mean" };
    if (state.stat === "probability" && !state.threshold) {
      const { info } = await load(plain);
      if (mine !== turn) return;
      state.threshold = String(middle(info));
      showThreshold(state, field);
    }
    address(); // the link also holds the defaults that were chosen
    const query = { ...plain, statistic: state.stat };
    if (state.stat === "probability") Object.assign(query, { threshold: state.threshold, direction: state.direction });
    if (state.stat === "difference") Object.assign(query, differenceQuery(state.other));
    const loading = [load(query)];
    const names = new Set(catalogue.fields.map((f) => f.field));
    const parts = field.leveled ? ["u", "v"] : ["u10", "v10"];
    if (state.barbs === "1" && parts.every((n) => names.has(n))) {
      loading.push(...parts.map((n) => load({ ...shared, ...level, field: n, statistic: "mean" })));
    }
    const [drawn, u, v] = await Promise.all(loading);
    if (mine !== turn) return;
    chart.layers = { contours: state.contours === "1", barbs: state.barbs === "1" };
    chart.mark = state.point ? state.point.split(",").map(Number) : null;
    chart.show(drawn, colours[drawn.info.colours], u && { u, v });
    const shown = await panel.show(state, result.id, colours.RdBu_r, () => mine === turn);
    if (mine !== turn) return;
    describe(drawn, shown, field);
    showCalls(byId("under"), "map", [drawn, u, v].filter(Boolean).map(({ url }) => ({ url, binary: true })));
    say("");
    if (state.point) await point(result);
    if (mine === turn) settled = location.hash;
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
}

async function point(result) {
  const group = result.kind === "forecast" ? result.id : [result.kind, result.flavour].filter(Boolean).join("-");
  const [lon, lat] = state.point.split(",").map(Number);
  byId("point").hidden = false;
  const stored = catalogue.fields.filter((f) => !f.derived);
  // A result may hold its members, or only their mean.
  const ending = stored.some((f) => f.statistics.includes("member")) ? "" : "_mean";
  const names = new Set(stored.map((f) => f.field));
  await showPoint(byId("point-data"), { collection: group, result: result.id, time: state.time, lon, lat, names, ending });
}

function describe(field, observations, known) {
  const { info } = field;
  const lead = info.lead_hours > 0 ? ` (+${info.lead_hours} h)` : "";
  const title = titleOf(info, known, byId("other").selectedOptions[0]?.text);
  const about = [`${clock(state.time)}${lead}`, info.kind, info.flavour, `${info.members} members`,
    info.checkpoint, info.simulated ? "simulated" : "", observations ? panel.title(state) : ""].filter(Boolean).join(" · ");
  byId("title").textContent = title;
  byId("about").textContent = about;
  document.title = `${info.long_name} ${state.time.slice(0, 16)}Z – Appa`;
  byId("map").setAttribute("aria-label", `${title}, ${about}`);
  bar(byId("bar"), field);
}

function bar(canvas, field) {
  const c = canvas.getContext("2d"), { width, height } = canvas, table = colours[field.info.colours];
  c.clearRect(0, 0, width, height);
  for (let x = 0; x < width; x++) {
    c.fillStyle = table[Math.floor(x / width * 256)];
    c.fillRect(x, 0, 1, 14);
  }
  c.fillStyle = getComputedStyle(canvas).color;
  c.font = "12px system-ui, sans-serif";
  const [low, high] = field.info.range.map((value) => field.shown(value));
  const marks = high > low ? ticks(low, high) : [low];
  c.textAlign = "center";
  for (const value of marks) {
    const text = value === marks.at(-1) ? `${value} ${unitsOf(field.info.display.units)}` : `${value}`;
    const x = (value - low) / (high - low || 1) * width, half = c.measureText(text).width / 2;
    c.fillRect(Math.min(x, width - 1), 11, 1, 6);
    c.fillText(text, Math.min(width - half, Math.max(half, x)), 28);
  }
}

const degrees = (value, names) => `${Math.abs(value).toFixed(2)}°${names[value < 0 ? 1 : 0]}`;

function under(clientX, clientY) {
  const { field } = chart;
  if (!field) return null;
  const place = chart.toMap(clientX, clientY), value = field.at(...place);
  if (!field.cell(...place)) return null;
  const [lon, lat] = field.position(...place);
  return { lon, lat, value };
}

byId("map").addEventListener("pointermove", (event) => {
  const found = under(event.clientX, event.clientY), { info } = chart.field ?? {};
  byId("readout").textContent = found
    ? `${degrees(found.lat, "NS")} ${degrees(found.lon, "EW")}  ${Number.isNaN(found.value) ? "–" : chart.field.shown(found.value).toPrecision(5)} ${unitsOf(info.display.units)}`
    : "";
});
byId("map").addEventListener("click", (event) => {
  if (chart.moved || panel.pick(event.clientX, event.clientY)) return;
  const found = under(event.clientX, event.clientY);
  if (found) change({ point: `${found.lon.toFixed(3)},${found.lat.toFixed(3)}` });
});

function go(next) {
  const now = choose();
  return change({ time: next.time, result: follow(next, now)?.id ?? "", other: followOther(state.other, entry(), next) });
}
const step = (by) => {
  const next = timeline[Math.min(timeline.length - 1, Math.max(0, timeline.indexOf(entry()) + by))];
  return next && next.time !== state.time ? go(next) : null;
};

function play() {
  if (playing) {
    clearInterval(playing);
    playing = null;
  } else {
    playing = setInterval(() => {
      if (timeline.indexOf(entry()) >= timeline.length - 1) go(timeline[0]);
      else step(1);
    }, 500);
  }
  byId("play").textContent = playing ? "❚❚" : "▶";
  byId("play").setAttribute("aria-label", playing ? "stop" : "play");
}

document.addEventListener("keydown", (event) => {
  const own = event.key === " " ? /input|select|textarea|button|summary/i : /input|select|textarea/i;
  if (own.test(event.target.tagName) && event.target.id !== "time") return;
  const act = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), " ": play, "+": () => chart.zoom(1.5), "-": () => chart.zoom(1 / 1.5),
    0: () => chart.home(), b: () => change({ barbs: state.barbs === "1" ? "0" : "1" }), c: () => change({ contours: state.contours === "1" ? "0" : "1" }),
    n: () => panel.step(1), p: () => panel.step(-1),
  }[event.key];
  const way = event.shiftKey && { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (way) {
    event.preventDefault();
    return chart.pan(...way);
  }
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act();
});

byId("time").addEventListener("input", (event) => {
  go(timeline[Number(event.target.value)]);
});
for (const id of ["result", "stat", "view", "direction", "other"]) {
  byId(id).addEventListener("change", (event) => change({ [id]: event.target.value }));
}
for (const id of ["field", "level"]) { // a threshold holds for one field
  byId(id).addEventListener("change", (event) => change({ [id]: event.target.value, threshold: "" }));
}
byId("threshold").addEventListener("change", (event) => {
  const { display } = catalogue.fields.find((f) => f.field === state.field);
  change({ threshold: event.target.value === "" ? "" : String(toSi(event.target.value, display)) });
});
for (const id of ["contours", "barbs"]) byId(id).addEventListener("change", (event) => change({ [id]: event.target.checked ? "1" : "0" }));
byId("back").addEventListener("click", () => step(-1));
byId("forth").addEventListener("click", () => step(1));
byId("play").addEventListener("click", play);
for (const form of document.querySelectorAll("main form")) form.addEventListener("submit", (event) => event.preventDefault());
byId("home").addEventListener("click", () => chart.home());
byId("closer").addEventListener("click", () => chart.zoom(1.5));
byId("farther").addEventListener("click", () => chart.zoom(1 / 1.5));
byId("place").addEventListener("change", (event) => {
  const [lat, lon] = event.target.value.split(/[\s,;]+/).filter(Boolean).map(Number);
  const known = Math.abs(lat) <= 90 && Math.abs(lon) <= 360;
  if (!known) return say("A place is written as latitude and longitude in degrees, such as 50.6 5.6 or -33.9 151.2.", true);
  return change({ point: `${(((lon + 540) % 360) - 180).toFixed(3)},${lat.toFixed(3)}` });
});
byId("close").addEventListener("click", () => {
  byId("point").hidden = true;
  change({ point: "" });
});
for (const [id, act] of [["save", save], ["save-point", savePlace]]) {
  byId(id).addEventListener("click", () => act().catch((error) => say(error.message, true)));
}
window.addEventListener("hashchange", () => {
  state = readState();
  show();
});

const name = () => `appa_${state.field}_${compact(state.time)}`;

function save() {
  const own = byId("obs-bar"), bars = [byId("bar"), ...(panel.layer && !own.hidden ? [own] : [])];
  return saveMap(byId("map"), bars, panel.legend, byId("title").textContent, [byId("about").textContent], name());
}

// The charts of the place, with what made them.
function savePlace() {
  const panel = byId("point-data"), { info } = chart.field;
  const about = [clock(state.time), info.kind, info.flavour, info.checkpoint, info.simulated ? "simulated" : ""];
  const stations = [...panel.querySelectorAll(".stations li")].map((item) => [item.textContent.trim(), item.dataset.colour]);
  return saveCharts(panel, [...panel.querySelectorAll("svg")].map((svg) => ({ svg })), {
    title: panel.querySelector("h2").textContent, lines: [about.filter(Boolean).join(" · ")],
    legend: stations.filter(([, colour]) => colour), name: `appa_place_${compact(state.time)}`,
  });
}

async function refresh() {
  const url = apiUrl("v1/fields/timeline", { limit: 500 }), found = await getJson(url);
  showCalls(byId("result").parentElement, "times and results", [{ url }]);
  const newest = timeline.at(-1)?.time;
  timeline = found.items;
  return newest !== timeline.at(-1)?.time;
}

async function start() {
  try {
    let coast;
    [colours, coast] = await Promise.all([getJson(apiUrl("v1/fields/colours")), getJson(apiUrl("v1/fields/coastlines")), refresh()]);
    chart.coastlines = coast;
    await show();
  } catch (error) {
    say(error.message, true);
  }
}

keyForm(start);
start();
setInterval(() => refresh().then((fresh) => fresh && show()).catch(() => {}), 30000);
// For tests and consoles: what is drawn, and where.
Object.assign(window, { appaMap: { chart, panel, under, get state() { return state; }, get settled() { return settled; } } });
