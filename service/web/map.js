// The map: what is shown is in the address, so that every state is a link.

import { apiUrl, byId, element, getJson, keyForm } from "./api.js";
import { showCalls } from "./calls.js";
import { Chart } from "./chart.js";
import { Field } from "./field.js";
import { ObservationPanel } from "./observation_panel.js";
import { showPoint } from "./point.js";

const NAMES = ["time", "result", "field", "level", "stat", "threshold", "direction", "view", "contours", "barbs", "point",
  "obs", "network", "variable", "layer", "outcome", "row"];
const DEFAULTS = { field: "t2m", level: "500", stat: "mean", view: "global", direction: "above", contours: "1", barbs: "0", obs: "" };
const chart = new Chart(byId("map"));
const cache = new Map();
const panel = new ObservationPanel(chart, change);
let state = readState(), timeline = [], catalogue = null, colours = null, playing = null, turn = 0, settled = null, calls = [];

function readState() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  return { ...DEFAULTS, ...Object.fromEntries(NAMES.filter((n) => n in given).map((n) => [n, given[n]])) };
}

function change(values) {
  Object.assign(state, values);
  const kept = NAMES.filter((n) => state[n] && state[n] !== DEFAULTS[n]).map((n) => [n, state[n]]);
  const hash = "#" + new URLSearchParams(kept);
  if (hash !== location.hash) history.replaceState(null, "", hash);
  return show();
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
  const when = state.time.replace("T", " ").slice(0, 16) + "Z";
  slider.setAttribute("aria-valuetext", when);
  byId("when").textContent = when;
  const label = (r) => [r.kind, r.flavour, r.lead_hours > 0 ? `+${r.lead_hours} h` : "", `v${r.revision}`, r.id].filter(Boolean).join(" ");
  options("result", entry().results.map((r) => [r.id, label(r)]), result.id);
  const usable = catalogue.fields.filter((f) => f.statistics.length);
  if (!usable.some((f) => f.field === state.field)) state.field = usable[0].field;
  options("field", usable.map((f) => [f.field, f.long_name]), state.field);
  const field = usable.find((f) => f.field === state.field);
  const levels = catalogue.levels.map((level) => [String(level), `${level} hPa`]);
  if (!levels.some(([level]) => level === state.level)) state.level = levels.at(-1)?.[0] ?? "";
  options("level", levels, state.level);
  byId("level").parentElement.hidden = !field.leveled;
  const stats = field.statistics.filter((s) => s !== "difference").flatMap((s) => (s === "member"
    ? Array.from({ length: catalogue.members }, (_, i) => [`member:${i}`, `member ${i}`])
    : [[s, s]]));
  if (!stats.some(([s]) => s === state.stat)) state.stat = stats[0][0];
  options("stat", stats, state.stat);
  byId("threshold-part").hidden = state.stat !== "probability";
  byId("threshold").value = state.threshold ?? "";
  byId("direction").value = state.direction;
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
  if (!result) return say("No analysis yet: post observations and run a job or a cycle.");
  try {
    if (catalogue?.result !== result.id) {
      catalogue = await getJson(apiUrl("v1/fields/catalogue", { result: result.id }));
      if (mine !== turn) return;
    }
    const field = controls(result);
    const shared = { result: result.id, time: state.time, view: state.view, width: 1440, height: 721 };
    const level = field.leveled ? { level: state.level } : {};
    const probability = state.stat === "probability" ? { threshold: state.threshold ?? middle(field), direction: state.direction } : {};
    if (state.stat === "probability") byId("threshold").value = probability.threshold;
    const query = { ...shared, ...level, field: state.field, statistic: state.stat, ...probability };
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
    describe(drawn, shown);
    say("");
    if (state.point) await point(result);
    if (mine === turn) settled = location.hash;
  } catch (error) {
    if (mine === turn) say(error.message, true);
  }
}

const middle = (field) => ({ K: 273.15, "m s**-1": 15, "m s-1": 15, Pa: 100000, m: 0.001, "1": 0.5 }[field.units] ?? 0);

async function point(result) {
  const group = result.kind === "forecast" ? result.id : [result.kind, result.flavour].filter(Boolean).join("-");
  const [lon, lat] = state.point.split(",").map(Number);
  byId("point").hidden = false;
  const stored = catalogue.fields.filter((f) => !f.derived);
  // A result may hold its members, or only their mean.
  const ending = stored.some((f) => f.statistics.includes("member")) ? "" : "_mean";
  const names = new Set(stored.map((f) => f.field));
  const asked = await showPoint(byId("point-data"), { collection: group, result: result.id, time: state.time, lon, lat, names, ending });
  showCalls([...calls, ...asked.map((url) => ({ url }))]);
}

function describe(field, observations) {
  const { info } = field;
  const level = info.level === null ? "" : ` ${info.level} hPa`;
  const lead = info.lead_hours > 0 ? ` (+${info.lead_hours} h)` : "";
  const title = `${info.long_name}${level}, ${info.statistic} (${info.display.units})`;
  const about = [`${state.time.replace("T", " ").slice(0, 16)}Z${lead}`, info.kind, info.flavour, `${info.members} members`,
    info.checkpoint, info.simulated ? "simulated" : "", observations ? panel.title(state) : ""].filter(Boolean).join(" · ");
  byId("title").textContent = title;
  byId("about").textContent = about;
  document.title = `${info.long_name} ${state.time.slice(0, 16)}Z – Appa`;
  byId("map").setAttribute("aria-label", `${title}, ${about}`);
  bar(byId("bar"), field);
  calls = [field.url, observations?.url].filter(Boolean).map((url) => ({ url, binary: true }));
  showCalls(calls);
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
  const digits = Math.max(0, 1 - Math.floor(Math.log10(Math.abs(high - low) || 1)));
  for (let i = 0; i <= 4; i++) {
    c.textAlign = ["left", "center", "center", "center", "right"][i];
    c.fillText((low + i / 4 * (high - low)).toFixed(digits), i / 4 * width, 28);
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
    ? `${degrees(found.lat, "NS")} ${degrees(found.lon, "EW")}  ${Number.isNaN(found.value) ? "–" : chart.field.shown(found.value).toPrecision(5)} ${info.display.units}`
    : "";
});
byId("map").addEventListener("click", (event) => {
  if (chart.moved || panel.pick(event.clientX, event.clientY)) return;
  const found = under(event.clientX, event.clientY);
  if (found) change({ point: `${found.lon.toFixed(3)},${found.lat.toFixed(3)}` });
});

const step = (by) => {
  const next = timeline[Math.min(timeline.length - 1, Math.max(0, timeline.indexOf(entry()) + by))];
  return next && next.time !== state.time ? change({ time: next.time, result: follow(next) }) : null;
};
// Of the next hour the same result if it goes on (a forecast), else one of the same kind and flavour.
function follow(next) {
  const now = choose();
  const same = next.results.find((r) => r.id === now.id) ?? next.results.find((r) => r.kind === now.kind && r.flavour === now.flavour);
  return same?.id ?? "";
}

function play() {
  if (playing) {
    clearInterval(playing);
    playing = null;
  } else {
    playing = setInterval(() => {
      if (timeline.indexOf(entry()) >= timeline.length - 1) change({ time: timeline[0].time, result: "" });
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
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act();
});

byId("time").addEventListener("input", (event) => {
  const next = timeline[Number(event.target.value)];
  change({ time: next.time, result: follow(next) });
});
for (const id of ["result", "field", "level", "stat", "view", "direction"]) {
  byId(id).addEventListener("change", (event) => change({ [id]: event.target.value }));
}
byId("threshold").addEventListener("change", (event) => change({ threshold: event.target.value }));
for (const id of ["contours", "barbs"]) byId(id).addEventListener("change", (event) => change({ [id]: event.target.checked ? "1" : "0" }));
byId("back").addEventListener("click", () => step(-1));
byId("forth").addEventListener("click", () => step(1));
byId("play").addEventListener("click", play);
byId("home").addEventListener("click", () => chart.home());
byId("close").addEventListener("click", () => {
  byId("point").hidden = true;
  change({ point: "" });
});
byId("save").addEventListener("click", () => save().catch((error) => say(error.message, true)));
window.addEventListener("hashchange", () => {
  state = readState();
  show();
});

async function save() {
  const map = byId("map"), scale = map.width / map.clientWidth, room = Math.round(92 * scale);
  const whole = new OffscreenCanvas(map.width, map.height + room), c = whole.getContext("2d");
  c.fillStyle = "#ffffff";
  c.fillRect(0, 0, whole.width, whole.height);
  c.fillStyle = "#12161c";
  c.font = `600 ${16 * scale}px system-ui, sans-serif`;
  c.fillText(byId("title").textContent, 10 * scale, 22 * scale);
  c.font = `${13 * scale}px system-ui, sans-serif`;
  c.fillText(byId("about").textContent, 10 * scale, 42 * scale);
  c.drawImage(map, 0, 52 * scale);
  c.drawImage(byId("bar"), 10 * scale, map.height + 56 * scale, 420 * scale, 34 * scale);
  const link = element("a");
  link.href = URL.createObjectURL(await whole.convertToBlob({ type: "image/png" }));
  link.download = `appa_${state.field}_${state.time.slice(0, 13).replace(/[-:]/g, "")}Z.png`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function refresh() {
  const found = await getJson(apiUrl("v1/fields/timeline", { limit: 500 }));
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
