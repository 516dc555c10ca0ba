// What a field is compared with: another result of the same or of another time, or a threshold.

import { byId } from "./api.js";
import { unitsOf } from "./axis.js";

const EARLIER = 24;

export const label = (r) => [r.kind, r.flavour, r.lead_hours > 0 ? `+${r.lead_hours} h` : "", `v${r.revision}`, r.id].filter(Boolean).join(" ");
export const clock = (time) => `${time.replace("T", " ").slice(0, 16)}Z`;

// For another hour: the same result if it covers that hour (a forecast), else one of its kind and flavour.
export const follow = (entry, now) => entry.results.find((r) => r.id === now.id)
  ?? entry.results.find((r) => r.kind === now.kind && r.flavour === now.flavour);

// What can be subtracted, as [value, text]: the other results of the time that is shown, then the
// newest analyses of other times, whose value is `id@time`.
export function others(timeline, entry, result) {
  const now = entry.results.filter((r) => r.id !== result.id).map((r) => [r.id, label(r)]);
  const rest = timeline.filter((item) => item !== entry).toReversed().flatMap(({ time, results }) =>
    results.filter((r) => r.lead_hours === 0).slice(0, 1).map((r) => [`${r.id}@${time}`, `${clock(time)} ${label(r)}`]));
  return [...now, ...rest.slice(0, EARLIER)];
}

export function differenceQuery(other) {
  const [id, time] = other.split("@");
  return { statistic: `difference:${id}`, other_time: time };
}

// When stepping in time, the subtracted result steps along if it was of the same hour.
export function followOther(other, entry, next) {
  const now = entry.results.find((r) => r.id === other);
  return now ? follow(next, now)?.id ?? "" : other;
}

// A threshold is entered in display units; the address and the API use SI units.
export const toShown = (si, { scale, offset }) => Number((Number(si) * scale + offset).toPrecision(6));
export const toSi = (shown, { scale, offset }) => Number(((Number(shown) - offset) / scale).toPrecision(9));

// Default threshold: the middle of the values, with two digits in display units.
export function middle({ minimum, maximum, display }) {
  const shown = ((minimum ?? 0) + (maximum ?? 0)) / 2 * display.scale + display.offset;
  return toSi(Number(shown.toPrecision(2)), display);
}

export function showThreshold(state, field) {
  byId("threshold-part").hidden = state.stat !== "probability";
  byId("threshold").value = state.threshold ? toShown(state.threshold, field.display) : "";
  byId("threshold-units").textContent = unitsOf(field.display.units);
  byId("direction").value = state.direction;
}

// Title of a picture: "temperature 850 hPa, chance of more than 0 °C".
export function titleOf(info, field, taken) {
  const level = info.level === null ? "" : ` ${info.base === null ? "" : `${info.base}–`}${info.level} hPa`;
  const { statistic, display } = info;
  const told = {
    probability: () => `chance of ${info.direction === "above" ? "more" : "less"} than ${toShown(info.threshold, field.display)} ${unitsOf(field.display.units)}`,
    difference: () => `minus ${taken}`,
    increment: () => "analysis minus background",
    member: () => statistic.replace(":", " "),
  }[statistic.split(":")[0]]?.() ?? statistic;
  return `${info.long_name}${level}, ${told} (${unitsOf(display.units)})`;
}
