// The charts of verification: a panel for each network and variable with its lines, their control
// limits as bands and what was outside of them, and histograms of ranks.

import { element, shape } from "./api.js";
import { hourOf, ticks } from "./axis.js";

const WIDTH = 420, HEIGHT = 150, LEFT = 58, RIGHT = 4, BOTTOM = 20, TOP = 6;
const ALONE = 3; // half width of the band of a single analysis
export const SIDES = { background: "#edae49", analysis: "#d1495b" };
export const LIMITS = ["_limit_low", "_limit_high"]; // endings of a statistic in the series

function frame(title) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.append(shape("title", {}, title));
  return svg;
}

const level = (y, name) => shape("line", { class: name, x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y });
const besideAxis = (y, text) => shape("text", { class: "tick", x: LEFT - 4, y: y + 4, "text-anchor": "end" }, text);
const alongAxis = (units) => shape("text", { class: "units", transform: `translate(11 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, units);
const below = (text, right) => shape("text", right
  ? { x: WIDTH - RIGHT, y: HEIGHT - 5, "text-anchor": "end" } : { x: LEFT, y: HEIGHT - 5 }, text);

function figure(name, svg) {
  const made = element("figure");
  made.append(element("figcaption", name), svg);
  return made;
}

export function histogram({ side, counts }) {
  const total = counts.reduce((sum, count) => sum + count, 0), flat = total / counts.length;
  const top = 1.1 * Math.max(...counts), width = (WIDTH - LEFT - RIGHT) / counts.length;
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const name = `ranks of ${total} withheld values, ${side}`, svg = frame(`${name}: ${counts.join(", ")}`);
  counts.forEach((count, i) => svg.append(shape("rect", {
    x: LEFT + i * width + 1, width: Math.max(1, width - 2), y: y(count), height: y(0) - y(count),
    fill: SIDES[side], "data-count": count,
  })));
  svg.append(level(y(flat), "perfect"), besideAxis(y(flat), Number(flat.toPrecision(3))), alongAxis("values"));
  svg.append(below("below all members"), below("above all", true));
  return figure(name, svg);
}

// Limits of a statistic by time: { time, low, high }; a side without a limit is undefined.
export function limitsOf(group, statistic) {
  const found = new Map();
  LIMITS.forEach((ending, i) => {
    for (const { time, value } of group.lines[statistic + ending] ?? []) {
      found.set(time, { time, ...found.get(time), [["low", "high"][i]]: value });
    }
  });
  return found;
}

// Runs of analyses that follow each other and have limits.
function runs(times, limits) {
  const found = [[]];
  for (const time of times) {
    if (limits.has(time)) found.at(-1).push(limits.get(time));
    else if (found.at(-1).length) found.push([]);
  }
  return found.filter((run) => run.length);
}

function band(run, x, y, [floor, top]) {
  const ends = run.length > 1 ? run.map((limit) => [x(limit.time), limit]) : [-ALONE, ALONE].map((by) => [x(run[0].time) + by, run[0]]);
  const upper = ends.map(([at, { high = top }]) => `${at},${y(high)}`);
  const lower = ends.map(([at, { low = floor }]) => `${at},${y(low)}`);
  return [...upper, ...lower.reverse()].join(" ");
}

// `view`: { lines, perfect, signed } as verification.js lists them; `outside`: lines of limits.js; `units` of the axis.
export function chart(group, [from, to], outside, { lines, perfect, signed }, units) {
  const own = outside.filter((line) => line.network === group.network && line.variable === group.variable);
  const limited = own.filter((line) => line.statistic in group.lines);
  const all = [...Object.values(group.lines).flat().map((row) => row.value), ...limited.flatMap(({ low, high }) => [low, high])];
  const top = 1.1 * Math.max(...all, perfect ?? (signed ? 0 : 1e-12)); // the perfect value is always in sight
  const floor = signed ? 1.1 * Math.min(...all, 0) : 0;
  const x = (time) => LEFT + ((time - from) / Math.max(to - from, 1)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (Math.max(value, floor) - floor) / ((top - floor) || 1)) * (HEIGHT - TOP - BOTTOM);
  const svg = frame(`${group.name} (${units})`);
  svg.append(alongAxis(units));
  for (const value of ticks(floor, top > floor ? top : floor + 1)) svg.append(level(y(value), "axis"), besideAxis(y(value), value));
  const shown = Object.entries(lines).filter(([statistic]) => group.lines[statistic]);
  for (const [statistic, [name, fill]] of shown) {
    const times = group.lines[statistic].map((row) => row.time);
    for (const run of runs(times, limitsOf(group, statistic))) {
      const area = shape("polygon", { class: "band", points: band(run, x, y, [floor, top]), fill, "data-statistic": statistic });
      area.append(shape("title", {}, `control limits of ${name}`));
      svg.append(area);
    }
  }
  if (perfect !== undefined) svg.append(level(y(perfect), "perfect"));
  svg.append(...own.map((line) => passed(line, x, y(floor))), ...limited.map((line) => reach(line, x, y, lines[line.statistic][1])));
  svg.append(below(hourOf(from)), below(hourOf(to), true));
  for (const [statistic, [, colour, dash]] of shown) {
    const points = group.lines[statistic].map((row) => `${x(row.time)},${y(row.value)}`);
    const [cx, cy] = points.at(-1).split(",");
    svg.append(
      shape("polyline", { points: points.join(" "), stroke: colour, "stroke-dasharray": dash, "data-statistic": statistic }),
      shape("circle", { cx, cy, r: 2.5, fill: colour }),
    );
  }
  return figure(group.name, svg);
}

// An analysis outside of limits: a bar at its time, and the limits it passed where they are drawn.
function passed({ time, text }, x, bottom) {
  const bar = shape("line", { class: "outside", x1: x(time), x2: x(time), y1: TOP, y2: bottom });
  bar.append(shape("title", {}, text));
  return bar;
}

function reach({ time, low, high, text }, x, y, stroke) {
  const [a, b, at] = [y(low), y(high), x(time)];
  const made = shape("path", { class: "limits", d: `M${at - 4} ${a}h8M${at - 4} ${b}h8M${at} ${a}V${b}`, stroke, "data-low": low, "data-high": high });
  made.append(shape("title", {}, text));
  return made;
}
