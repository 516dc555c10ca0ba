// Wind barbs, for the map and for profiles.

export const KNOT = 0.514444;
export const CALM = 2.5; // knots, below which a circle is drawn

// A barb from (0, 0) along x, to where the wind comes from: half feathers of 5 knots, whole ones of 10,
// flags of 50; in the south on the other side. Lines and flags are lists of places.
export function barbParts(knots, length, south) {
  if (knots < CALM) return { lines: [], flags: [] };
  const lines = [[[0, 0], [length, 0]]], flags = [];
  const side = south ? -1 : 1, feather = length * 0.45, gap = length * 0.17;
  let left = Math.round(knots / 5) * 5, place = length;
  for (; left >= 50; left -= 50, place -= 1.6 * gap) {
    flags.push([[place, 0], [place - gap / 2, side * feather], [place - 1.4 * gap, 0]]);
  }
  for (; left >= 10; left -= 10, place -= gap) {
    lines.push([[place, 0], [place + gap / 2, side * feather]]);
  }
  if (left >= 5) {
    if (place === length) place -= gap;
    lines.push([[place, 0], [place + gap / 4, side * feather / 2]]);
  }
  return { lines, flags };
}
