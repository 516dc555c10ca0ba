// What charts share of their axes: round values, units and hours.

// Round values within an axis, two to six.
export function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(8)));
}

// Units as people write them: "m s⁻¹" of "m s-1".
export const unitsOf = (text) => (text === "1" ? text : text.replace(/-?\d/g, (power) => [...power].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")));

// "03-20 12Z" of a time in milliseconds or text.
export const hourOf = (time) => `${new Date(time).toISOString().slice(5, 13).replace("T", " ")}Z`;
