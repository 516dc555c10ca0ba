// One place: a meteogram of all members and their mean with what stations reported, and a profile.

import { apiUrl, element, getJson, shape } from "./api.js";
import { hourOf, ticks } from "./axis.js";
import { callsOf } from "./calls.js";
import { finite, mean, MEAN, MEMBER, readMembers } from "./members.js";
import { profileChart } from "./profile.js";

const SERIES = [
  ["2 m temperature (°C)", ["t2m"], (t) => t - 273.15, 2, ["2m_temperature"]],
  ["10 m wind (m s⁻¹)", ["u10", "v10"], (u, v) => Math.hypot(u, v), 2, ["10m_u_component_of_wind", "10m_v_component_of_wind"]],
  ["mean sea level pressure (hPa)", ["msl"], (p) => p / 100, 2, ["mean_sea_level_pressure"]],
  ["precipitation (mm h⁻¹)", ["tp"], (m) => 1000 * m, 0.5, ["total_precipitation"]],
]; // with the smallest range of the axis, and the reported variables
const WIDTH = 460, HEIGHT = 120, LEFT = 46, RIGHT = 8, TOP = 16, BOTTOM = 18;
const REACH = 1.5, STATIONS = 3, REPORTS = 5000, HALF_HOUR = 1800000, DAYS = 5 * 86400000;
const REPORTED = ["#d55e00", "#cc79a7", "#009e73"]; // the nearest station first

const daysFrom = (time, by) => new Date(Date.parse(time) + by).toISOString().slice(0, 19) + "Z";

// A forecast is shown whole; of analyses, the days around the time.
export async function showPoint(panel, { collection, result, time, lon, lat, names, ending }) {
  const [x, y] = [lon.toFixed(3), lat.toFixed(3)];
  const title = `${Math.abs(lat).toFixed(2)}°${lat < 0 ? "S" : "N"} ${Math.abs(lon).toFixed(2)}°${lon < 0 ? "W" : "E"}`;
  panel.replaceChildren(element("h2", title), element("p", "reading …"));
  const surface = SERIES.flatMap(([, parts]) => parts).filter((name) => names.has(name));
  const at = `POINT(${x} ${y})`;
  const wanted = (group, parts, datetime) => apiUrl(`ogc/collections/${encodeURIComponent(group)}/position`, {
    coords: at, "parameter-name": parts.map((name) => name + ending).join(","), f: "CoverageJSON", method: "nearest", datetime,
  });
  const series = wanted(collection, surface, collection === result ? undefined : `${daysFrom(time, -DAYS)}/${daysFrom(time, DAYS)}`);
  const profile = wanted(result, ["t", "q", "u", "v"].filter((name) => names.has(name)), time);
  const found = await Promise.allSettled([getJson(series), names.has("t") ? getJson(profile) : null]);
  const parts = [element("h2", title)];
  if (found[0].status === "fulfilled") {
    const members = readMembers(found[0].value, "t", ending);
    const near = await nearestStations(members[0]?.places ?? [], time, lon, lat);
    parts.push(stationList(near), ...(near.url ? [callsOf("stations", [{ url: near.url }])] : []));
    for (const [name, inputs, formula, least, reported] of SERIES) {
      const lines = members.filter((m) => inputs.every((i) => i in m.values)).map((m) => ({
        times: m.places, values: m.places.map((_, i) => formula(...inputs.map((n) => m.values[n][i]))),
      }));
      if (lines.length) parts.push(meteogram(name, lines, time, least, near.stations.map((s) => values(s, reported, formula))));
    }
  } else parts.push(element("p", found[0].reason.message, "bad"));
  parts.push(callsOf("meteogram", [{ url: series }]));
  if (found[1].status === "fulfilled" && found[1].value) parts.push(profileChart(found[1].value, ending, lat < 0));
  else if (found[1].status === "rejected") parts.push(element("p", found[1].reason.message, "bad"));
  if (names.has("t")) parts.push(callsOf("profile", [{ url: profile }]));
  panel.replaceChildren(...parts);
}

// Stations with reports in the time of the meteogram, of a long one in the days about the time that is
// shown; nearest first: { id, network, km, reports }.
async function nearestStations(times, now, lon, lat) {
  if (!times.length) return { stations: [] };
  const wide = Math.min(180, REACH / Math.max(Math.cos(lat * Math.PI / 180), 0.02));
  const east = (degrees) => ((degrees + 540) % 360) - 180;
  const box = [east(lon - wide), Math.max(-90, lat - REACH), east(lon + wide), Math.min(90, lat + REACH)];
  if (wide >= 180) [box[0], box[2]] = [-180, 180];
  const first = Math.max(Date.parse(times[0]), Date.parse(now) - DAYS) - HALF_HOUR;
  const last = Math.min(Date.parse(times.at(-1)), Date.parse(now) + DAYS) + HALF_HOUR;
  const url = apiUrl("v1/observations", {
    start: new Date(first).toISOString(), end: new Date(last).toISOString(), box: box.map((x) => x.toFixed(3)).join(","),
    variables: SERIES.flatMap(([, , , , reported]) => reported).join(","), format: "geojson", limit: REPORTS,
    columns: "time,lat,lon,report_type,station_id,variable,obs_value,rejected_by",
  });
  const stations = new Map(), answer = await getJson(url).catch((error) => ({ error, features: [] }));
  for (const { geometry, properties: report } of answer.features) {
    const key = `${report.report_type} ${report.station_id}`;
    const km = distance(lon, lat, ...geometry.coordinates);
    const station = stations.get(key) ?? { id: report.station_id, network: report.report_type, km, reports: [] };
    station.km = Math.min(station.km, km); // ships move
    station.reports.push(report);
    stations.set(key, station);
  }
  return { url, error: answer.error, stations: [...stations.values()].sort((a, b) => a.km - b.km).slice(0, STATIONS) };
}

function distance(lonA, latA, lonB, latB) {
  const [a, b, l] = [latA, latB, lonB - lonA].map((x) => x * Math.PI / 180);
  const h = Math.sin((b - a) / 2) ** 2 + Math.cos(a) * Math.cos(b) * Math.sin(l / 2) ** 2;
  return 2 * 6371 * Math.asin(Math.min(1, Math.sqrt(h)));
}

// The reports of a station that have all variables of a chart: time, value, whether a check refused one.
function values(station, variables, formula) {
  const times = new Map();
  for (const report of station.reports) {
    if (!variables.includes(report.variable) || report.obs_value === null) continue;
    const one = times.get(report.time) ?? { time: Date.parse(report.time), parts: {}, refused: "" };
    one.parts[report.variable] = report.obs_value;
    one.refused ||= report.rejected_by ?? "";
    times.set(report.time, one);
  }
  return [...times.values()].filter(({ parts }) => variables.every((name) => name in parts))
    .map(({ time, parts, refused }) => ({ time, refused, value: formula(...variables.map((name) => parts[name])) }));
}

function stationList({ stations, error }) {
  const list = element("ul", undefined, "stations");
  if (error) list.append(element("li", `stations: ${error.message}`, "bad"));
  else if (!stations.length) list.append(element("li", `no station reported within ${REACH}° of latitude`));
  for (const [i, { id, network, km }] of stations.entries()) {
    const item = element("li"), mark = element("b");
    item.dataset.colour = mark.style.background = REPORTED[i];
    item.append(mark, ` ${id || "without a name"} · ${network} · ${km.toFixed(0)} km`);
    list.append(item);
  }
  return list;
}

function axes(svg, title, low, high, y) {
  svg.append(shape("text", { x: LEFT, y: 11, class: "title" }, title));
  for (const value of ticks(low, high)) {
    svg.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }));
    svg.append(shape("text", { x: LEFT - 4, y: y(value) + 4, class: "tick" }, value));
  }
}

function meteogram(title, lines, now, least, reported = []) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  const kept = reported.flat().filter(({ refused }) => !refused).map(({ value }) => value);
  const all = [...lines.flatMap((line) => line.values), ...kept].filter(finite);
  const low = Math.min(...all);
  let high = Math.max(...all);
  high = Math.max(high, low + least);
  const times = lines[0].times.map(Date.parse);
  const span = times.at(-1) - times[0] || 1;
  const x = (time) => LEFT + (time - times[0]) / span * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
  axes(svg, title, low, high, y);
  const draw = (values, attributes) => {
    const points = values.map((value, i) => (finite(value) ? `${x(times[i]).toFixed(1)},${y(value).toFixed(1)}` : "")).filter(Boolean);
    if (points.length === 1) {
      const [cx, cy] = points[0].split(",");
      svg.append(shape("circle", { cx, cy, r: 2.5, fill: attributes.stroke }));
    } else svg.append(shape("polyline", { points: points.join(" "), fill: "none", ...attributes }));
  };
  for (const line of lines) draw(line.values, { stroke: MEMBER, "stroke-width": 0.8, opacity: 0.7 });
  const means = times.map((_, i) => mean(lines.map((line) => line.values[i])));
  draw(means, { stroke: MEAN, "stroke-width": 2 });
  // Refused reports are hollow; one far outside the axis lies on its edge.
  for (const [i, reports] of reported.entries()) {
    for (const { time, value, refused } of reports) {
      const cy = y(Math.min(high, Math.max(low, value)));
      const dot = shape("circle", {
        cx: Math.min(WIDTH - RIGHT, Math.max(LEFT, x(time))).toFixed(1), cy: cy.toFixed(1), r: 3, class: "report",
        fill: refused ? "none" : REPORTED[i], stroke: REPORTED[i], "data-value": value,
      });
      dot.append(shape("title", {}, `${value.toFixed(2)}${refused ? `, ${refused}` : ""}`));
      svg.append(dot);
    }
  }
  const moment = Date.parse(now);
  if (moment >= times[0] && moment <= times.at(-1)) {
    svg.append(shape("line", { x1: x(moment), x2: x(moment), y1: TOP, y2: HEIGHT - BOTTOM, class: "now" }));
    const i = times.indexOf(moment);
    if (i >= 0) svg.append(shape("text", { x: WIDTH - RIGHT, y: 11, class: "tick value" }, means[i].toFixed(2)));
  }
  for (const time of [times[0], times.at(-1)]) {
    svg.append(shape("text", { x: x(time), y: HEIGHT - 5, class: time === times[0] ? "start" : "tick" }, hourOf(time)));
  }
  return svg;
}
