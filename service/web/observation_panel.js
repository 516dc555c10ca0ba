// The observation panel beside the map: selection, counts, and one observation in full.

import { apiUrl, byId, element, getJson } from "./api.js";
import { unitsOf } from "./axis.js";
import { callsOf, showCalls } from "./calls.js";
import { Observations } from "./observations.js";

const REACH = 9; // CSS pixels
const MAX_TOGETHER = 60;
const KEPT = 6;
const FILTERS = ["network", "variable", "layer", "outcome"];
const loaded = new Map(), manifests = new Map();

const numeral = (value, digits = 5) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(digits))));
const signed = (value) => (value > 0 ? "+" : "") + numeral(value, 3);
const words = (name) => name.replaceAll("_", " ");

// The query of what is asked for; an outcome is `used`, `rejected`, or the name of a check.
function asked(state) {
  const outcome = state.outcome === "used" || state.outcome === "rejected" ? { outcome: state.outcome } : { rejected_by: state.outcome };
  return { networks: state.network, variables: state.variable, layers: state.layer, ...outcome };
}

// Whether an analysis has a feedback table; a forecast has none.
async function hasFeedback(analysis) {
  if (!manifests.has(analysis)) {
    const { files } = await getJson(apiUrl(`v1/analyses/${encodeURIComponent(analysis)}`));
    manifests.set(analysis, files.some((file) => file.role === "feedback" && file.name.endsWith(".parquet")));
  }
  return manifests.get(analysis);
}

async function load(analysis, query) {
  if (!await hasFeedback(analysis)) throw new Error("This result has no feedback table: it used no observations, or was published without.");
  const key = JSON.stringify([analysis, query]);
  if (!loaded.has(key)) {
    loaded.set(key, Observations.load(analysis, query).catch((error) => {
      loaded.delete(key);
      throw error;
    }));
    if (loaded.size > KEPT) loaded.delete(loaded.keys().next().value);
  }
  return loaded.get(key);
}

export class ObservationPanel {
  // `change` takes new values of the address.
  constructor(chart, change) {
    Object.assign(this, { chart, change, layer: null });
    byId("obs").addEventListener("change", (event) => change({ obs: event.target.value, row: "" }));
    for (const name of FILTERS) {
      byId(`obs-${name}`).addEventListener("change", (event) => change({ [name]: event.target.value, row: "" }));
    }
    byId("obs-before").addEventListener("click", () => this.step(-1));
    byId("obs-after").addEventListener("click", () => this.step(1));
  }

  // Load and draw what the address names; `isNew` tells whether the address is still the same.
  async show(state, analysis, colours, isNew) {
    byId("obs").value = state.obs;
    byId("obs-filters").hidden = byId("observations").hidden = !state.obs;
    if (!state.obs) return this.#take(null);
    let layer;
    try {
      layer = await load(analysis, asked(state));
    } catch (error) {
      if (!isNew()) return null;
      byId("obs-counts").replaceChildren();
      byId("picked").replaceChildren();
      byId("obs-note").textContent = error.message;
      return this.#take(null);
    }
    if (!isNew()) return null;
    layer.paint(state.obs, colours);
    this.#take(layer);
    this.#options(layer.info, state);
    this.#counts(layer, state);
    this.#scale(layer, colours);
    showCalls(byId("obs-counts").parentElement, "observations", [{ url: layer.url, binary: true }]);
    if (this.picked !== `${analysis} ${state.row}`) await this.#describe(state, analysis, isNew);
    return layer;
  }

  // What is shown, for a title.
  title(state) {
    return [byId("obs").selectedOptions[0].text, ...FILTERS.map((name) => state[name] && words(state[name]))].filter(Boolean).join(" ");
  }

  // Names and colours of the outcomes, where they colour the map.
  get legend() {
    const rows = this.layer && !this.layer.scale ? [...byId("obs-counts").rows] : [];
    return rows.map(({ cells: [name, count] }) => [`${name.textContent} ${count.textContent}`, name.querySelector("b").style.background]);
  }

  #take(layer) {
    this.layer = this.chart.points = layer;
    this.chart.draw();
    return layer;
  }

  #options(info, state) {
    for (const name of FILTERS) {
      const others = info.counts.filter((count) => FILTERS.every((f) => f === name || fits(count, f, state[f])));
      const values = [...new Set(info.counts.map((count) => count[name]))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      const sum = (test) => others.reduce((total, count) => total + (test(count[name]) ? count.count : 0), 0);
      const items = [["", `all (${sum(() => true)})`], ...values.map((value) => [value, `${words(value)} (${sum((v) => v === value)})`])];
      if (name === "outcome") items.splice(1, 0, ["rejected", `rejected (${sum((v) => v !== "used")})`]);
      if (state[name] && !items.some(([value]) => value === state[name])) items.push([state[name], `${words(state[name])} (0)`]);
      byId(`obs-${name}`).replaceChildren(...items.map(([value, text]) => Object.assign(element("option", text), { value })));
      byId(`obs-${name}`).value = state[name] ?? "";
    }
  }

  #counts(layer, state) {
    const { info } = layer, counts = new Map();
    for (const count of info.counts) {
      if (!["network", "variable", "layer"].every((name) => fits(count, name, state[name]))) continue;
      counts.set(count.outcome, (counts.get(count.outcome) ?? 0) + count.count);
    }
    byId("obs-counts").replaceChildren(...[...counts].sort((a, b) => b[1] - a[1]).map(([outcome, count]) => {
      const row = element("tr"), name = element("th", words(outcome)), swatch = element("b");
      swatch.style.background = layer.outcomeColour(outcome);
      if (state.obs === "outcome") name.prepend(swatch);
      name.scope = "row";
      row.append(name, element("td", String(count)), element("td", info.meanings[outcome]));
      return row;
    }));
    const some = info.points < info.matching ? `, ${info.points} of them drawn` : "";
    byId("obs-note").textContent = `${info.matching} of ${info.total} observed values${some}`;
  }

  #scale({ scale }, colours) {
    const canvas = byId("obs-bar"), c = canvas.getContext("2d"), { width, height } = canvas;
    canvas.hidden = !scale;
    if (!scale) return;
    c.clearRect(0, 0, width, height);
    for (let x = 0; x < width; x++) {
      c.fillStyle = colours[Math.floor(x / width * 256)];
      c.fillRect(x, 0, 1, 12);
    }
    c.fillStyle = getComputedStyle(canvas).color;
    c.font = "12px system-ui, sans-serif";
    const ends = [`−${numeral(scale.most)}`, "0", `${numeral(scale.most)} ${unitsOf(scale.units)}`];
    ends.forEach((text, i) => {
      c.textAlign = ["left", "center", "right"][i];
      c.fillText(text, i / 2 * width, 26);
    });
    canvas.setAttribute("aria-label", `colours from ${ends[0]} to ${ends[2]}`);
  }

  // The observation under the pointer becomes part of the address.
  pick(clientX, clientY) {
    const { layer, chart } = this;
    if (!layer?.length) return false;
    const [x, y, t, ratio] = chart.onCanvas(clientX, clientY);
    const found = layer.nearest(x, y, t, REACH * ratio);
    if (found < 0) return false;
    this.change({ row: String(layer.columns.row[found]) });
    return true;
  }

  // The next one by the size of its departure, the largest first.
  step(by) {
    const { layer } = this;
    if (!layer?.length) return;
    const { ranking } = layer, now = layer.columns.row.indexOf(Number(this.row || -1));
    const place = now < 0 ? 0 : ranking.indexOf(now) + by;
    const next = ranking[Math.min(ranking.length - 1, Math.max(0, place))];
    this.change({ row: String(layer.columns.row[next]) });
  }

  async #describe(state, analysis, isNew) {
    this.row = state.row;
    this.chart.picked = null;
    const panel = byId("picked");
    if (!state.row) {
      this.picked = `${analysis} `;
      return panel.replaceChildren();
    }
    const { layer } = this, own = layer.columns.row.indexOf(Number(state.row));
    const rows = own < 0 ? [state.row] : layer.together(own).slice(0, MAX_TOGETHER).map((i) => layer.columns.row[i]);
    if (!rows.includes(Number(state.row))) rows.push(state.row);
    const url = apiUrl(`v1/analyses/${encodeURIComponent(analysis)}/feedback`, { rows: rows.join(","), f: "json" });
    const found = (await getJson(url)).rows;
    if (!isNew()) return null;
    this.picked = `${analysis} ${state.row}`;
    const chosen = found.find((row) => row.row === Number(state.row));
    if (!chosen) return panel.replaceChildren(element("p", `There is no row ${state.row} in this feedback.`, "bad"));
    this.chart.picked = [chosen.lon, chosen.lat];
    this.chart.draw();
    return panel.replaceChildren(...inFull(chosen), ...(found.length > 1 ? [listed(found, chosen, this.change)] : []), callsOf("this place", [{ url }]));
  }
}

function fits(count, name, wanted) {
  return !wanted || count[name] === wanted || (name === "outcome" && wanted === "rejected" && count.outcome !== "used");
}

const level = (row) => (row.vertical === null ? words(row.vertical_kind)
  : row.vertical_kind === "height" ? `${numeral(row.vertical)} m`
    : row.vertical_kind === "channel" ? `channel ${numeral(row.vertical)}${viewed(row)}`
      : `${numeral(row.vertical / 100)} hPa`);
const viewed = (row) => (row.scan_angle === null ? "" : ` at ${numeral(row.scan_angle)}° from nadir`);

// One observation: its value, departures, error, outcome and why.
function inFull(row) {
  const title = element("h2", `${row.station_id} · ${row.network}`);
  const ratio = (departure, ...spreads) => (departure === null || row.obs_error === null ? ""
    : ` (${(Math.abs(departure) / Math.hypot(...spreads)).toFixed(2)} σ)`);
  const facts = [
    ["variable", `${words(row.variable)}, ${level(row)}`],
    ["time", `${row.time.slice(0, 19).replace("T", " ")}Z, arrived ${row.received_time.slice(0, 19).replace("T", " ")}Z`],
    ["place", `${numeral(row.lat)}° ${numeral(row.lon)}°${row.elevation === null ? "" : `, ${numeral(row.elevation)} m`}`],
    ["value", `${numeral(row.obs_value, 6)} ${unitsOf(row.units)}`],
    ["error", `${numeral(row.obs_error)} ${unitsOf(row.units)}`],
    ["O−B", row.background_departure === null ? "–" : `${signed(row.background_departure)} ${unitsOf(row.units)}${ratio(row.background_departure, row.obs_error, row.background_spread ?? 0)}`],
    ["O−A", row.analysis_departure === null ? "–" : `${signed(row.analysis_departure)} ${unitsOf(row.units)}`],
    ...(row.obs_bias === null ? [] : [["bias taken off", `${signed(row.obs_bias)} ${unitsOf(row.units)}`]]),
    ["outcome", row.outcome === "used" ? "used" : `rejected by ${words(row.outcome)}: ${row.meaning}`],
    ["upload", `${row.batch_id}, number ${row.observation_id}`],
  ];
  const list = element("dl");
  for (const [name, value] of facts) list.append(element("dt", name), element("dd", value));
  return [title, list];
}

// All of one place; a button chooses one of them.
function listed(rows, chosen, change) {
  const table = element("table"), head = element("tr");
  table.append(element("caption", `${rows.length} values at this place`));
  for (const name of ["variable", "level", "O−B", "O−A", "outcome"]) head.append(Object.assign(element("th", name), { scope: "col" }));
  table.append(head);
  for (const row of rows) {
    const line = element("tr"), cell = element("td"), button = element("button", words(row.variable));
    button.type = "button";
    if (row.row === chosen.row) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => change({ row: String(row.row) }));
    cell.append(button);
    const departures = [row.background_departure, row.analysis_departure].map((d) => element("td", d === null ? "–" : signed(d)));
    line.append(cell, element("td", level(row)), ...departures, element("td", words(row.outcome)));
    table.append(line);
  }
  return table;
}
