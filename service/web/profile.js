// The profile of a place as a skew-T/log-p diagram: temperature and dewpoint of all members and of their
// mean, dry and moist adiabats, and the mean wind.

import { shape } from "./api.js";
import { barbParts, CALM, KNOT } from "./barbs.js";
import { finite, mean, MEAN, MEMBER, readMembers } from "./members.js";

const WIDTH = 460, HEIGHT = 330, LEFT = 46, RIGHT = 36, TOP = 16, BOTTOM = 18;
const LOWEST = 105000, HIGHEST = 10000, COLD = -75, WARM = 40; // Pa; degrees Celsius at the bottom
const LEVELS = [1000, 850, 700, 500, 300, 200, 150, 100];
const DEW = "var(--good)", ZERO = 273.15, KAPPA = 2 / 7;
const DRY = [-20, 0, 20, 40, 60, 80, 100, 120], MOIST = [0, 8, 16, 24, 32]; // °C at 1000 hPa

const INSIDE = WIDTH - LEFT - RIGHT, DEEP = HEIGHT - TOP - BOTTOM;
const up = (pressure) => Math.log(LOWEST / pressure) / Math.log(LOWEST / HIGHEST);
const y = (pressure) => TOP + DEEP * (1 - up(pressure));
// Isotherms lean to the right at 45 degrees, so that a standard lapse stands nearly upright.
const x = (t, pressure) => LEFT + INSIDE * (t - ZERO - COLD) / (WARM - COLD) + DEEP * up(pressure);

// Saturation vapour pressure over water (Pa, from K) and its inverse: Bolton (1980), as in the service.
const saturation = (t) => 611.2 * Math.exp(17.67 * (t - ZERO) / (t - 29.65));

function dewpoint(q, pressure) {
  const ratio = Math.log(Math.max(q, 1e-8) * pressure / (0.622 + 0.378 * q) / 611.2);
  return (17.67 * ZERO - 29.65 * ratio) / (17.67 - ratio);
}

const pressures = () => Array.from({ length: 48 }, (_, i) => LOWEST * (HIGHEST / LOWEST) ** (i / 47));

// dT/d ln p of saturated air (K), with standard latent heat, gas constants and heat capacity.
function moistLapse(t, pressure) {
  const [latent, gas, vapour, heat] = [2.501e6 - 2370 * (t - ZERO), 287.05, 461.5, 1004.7];
  const r = 0.622 * saturation(t) / Math.max(pressure - saturation(t), 1);
  return (gas * t + latent * r) / (heat + latent ** 2 * r / (vapour * t * t));
}

// Integrate from 1000 hPa downward and upward by the midpoint rule.
export function moistAdiabat(start, pressure) {
  const steps = 60, by = Math.log(pressure / 100000) / steps;
  let t = start, p = 100000;
  for (let i = 0; i < steps; i++) {
    const half = t + by / 2 * moistLapse(t, p);
    t += by * moistLapse(half, p * Math.exp(by / 2));
    p *= Math.exp(by);
  }
  return t;
}

function curve(svg, levels, values, attributes) {
  const points = levels.map((p, i) => (finite(values[i]) && p >= HIGHEST ? `${x(values[i], p).toFixed(1)},${y(p).toFixed(1)}` : "")).filter(Boolean);
  svg.append(shape("polyline", { points: points.join(" "), fill: "none", ...attributes }));
}

function paper(svg) {
  svg.append(shape("text", { x: LEFT, y: 11, class: "title" }, "skew-T log-p: temperature, dewpoint (°C)"));
  for (const level of LEVELS) {
    svg.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(100 * level), y2: y(100 * level), class: "grid" }));
    svg.append(shape("text", { x: LEFT - 4, y: y(100 * level) + 4, class: "tick" }, level));
  }
  const clip = shape("clipPath", { id: "profile-inside" }), inside = shape("g", { "clip-path": "url(#profile-inside)" });
  clip.append(shape("rect", { x: LEFT, y: TOP, width: INSIDE, height: DEEP }));
  for (let t = -120; t <= 40; t += 20) curve(inside, [LOWEST, HIGHEST], [t + ZERO, t + ZERO], { class: t === 0 ? "freezing" : "grid" });
  const along = pressures();
  for (const t of DRY) curve(inside, along, along.map((p) => (t + ZERO) * (p / 100000) ** KAPPA), { class: "dry" });
  for (const t of MOIST) curve(inside, along, along.map((p) => moistAdiabat(t + ZERO, p)), { class: "moist" });
  for (let t = -60; t <= 40; t += 20) svg.append(shape("text", { x: x(t + ZERO, LOWEST), y: HEIGHT - 4, class: "tick middle" }, t));
  svg.append(clip, inside);
  return inside;
}

// At the right edge: a column of barbs of the mean wind, toward where it comes from.
function winds(svg, levels, us, vs, south) {
  for (const [i, p] of levels.entries()) {
    if (!finite(us[i] + vs[i]) || p < HIGHEST || p > LOWEST) continue;
    const knots = Math.hypot(us[i], vs[i]) / KNOT, turn = Math.atan2(-vs[i], us[i]) * 180 / Math.PI + 180;
    const mark = shape("g", { class: "wind", transform: `translate(${WIDTH - 18} ${y(p).toFixed(1)}) rotate(${turn.toFixed(1)})`, "data-level": Math.round(p / 100), "data-knots": knots.toFixed(2) });
    mark.append(shape("title", {}, `${Math.round(p / 100)} hPa: ${knots.toFixed(0)} knots`));
    const { lines, flags } = barbParts(knots, 16, south);
    for (const line of lines) mark.append(shape("polyline", { points: line.join(" "), fill: "none" }));
    for (const flag of flags) mark.append(shape("polygon", { points: flag.join(" ") }));
    if (knots < CALM) mark.append(shape("circle", { r: 2.5, fill: "none" }));
    svg.append(mark);
  }
}

export function profileChart(document, ending, south) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "vertical profile" });
  const inside = paper(svg);
  const pascals = (level) => (level < 2000 ? 100 * level : level);
  const members = readMembers(document, "z", ending)
    .map(({ places, values }) => ({ levels: places.map(pascals), values }))
    .filter((m) => m.values.t && m.levels.length > 1);
  if (!members.length) return svg;
  const dew = (m) => m.levels.map((p, i) => (m.values.q ? Math.min(dewpoint(m.values.q[i], p), m.values.t[i]) : NaN));
  for (const m of members) {
    curve(inside, m.levels, dew(m), { stroke: DEW, "stroke-width": 0.7, opacity: 0.5 });
    curve(inside, m.levels, m.values.t, { stroke: MEMBER, "stroke-width": 0.8, opacity: 0.7 });
  }
  const { levels } = members[0], dews = members.map(dew);
  const average = (of) => levels.map((_, i) => mean(members.map((m, k) => of(m, k)[i])));
  const [t, d] = [average((m) => m.values.t), average((_, k) => dews[k])];
  for (const [name, values, stroke] of [["dewpoint", d, DEW], ["temperature", t, MEAN]]) {
    curve(inside, levels, values, { stroke, "stroke-width": 2, class: name, "data-values": values.map((value) => value.toFixed(3)).join(" ") });
  }
  if (members[0].values.u && members[0].values.v) {
    winds(svg, levels, average((m) => m.values.u), average((m) => m.values.v), south);
  }
  return svg;
}
