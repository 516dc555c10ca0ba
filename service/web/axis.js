// What charts share of their axes: round values and hours.

// Round values within an axis, two to six.
export function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(8)));
}

// "03-20 12Z" of a time in milliseconds or text.
export const hourOf = (time) => `${new Date(time).toISOString().slice(5, 13).replace("T", " ")}Z`;
