// Observations of an analysis on the map: columns of /v1/analyses/{id}/feedback, drawn as discs.

import { apiUrl, get } from "./api.js";

const TYPES = { float32: Float32Array, uint32: Uint32Array, uint8: Uint8Array };
const NONE = "#8a8f98";
const EDGE = 0xff201a14; // of 32-bit pixels, red in the lowest byte
// Colours that colour-blind people can tell apart (Okabe and Ito); unlisted names take the remaining ones.
const OUTCOMES = {
  used: "#0072b2", background_check: "#d55e00", withheld: "#56b4e9", thinned: "#999999", late: "#f0e442",
  bounds: "#cc79a7", duplicate: "#009e73", passive: "#e69f00", blocklist: "#000000",
};
const REST = ["#7f3c8d", "#a5aa99", "#80ba5a", "#e68310", "#11a579", "#4b4b8f", "#f97b72", "#cf1c90"];

const pixel = (text) => {
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
};

export class Observations {
  constructor(info, columns, url) {
    Object.assign(this, { info, url, columns, length: info.points });
    this.names = Object.fromEntries(info.columns.map((column) => [column.name, column.names]));
    this.colours = new Uint32Array(this.length);
    this.order = Uint32Array.from({ length: this.length }, (_, i) => i);
    this.places = { u: new Float32Array(this.length), v: new Float32Array(this.length) };
  }

  static async load(analysis, query) {
    const url = apiUrl(`v1/analyses/${encodeURIComponent(analysis)}/feedback`, query);
    const body = await (await get(url)).arrayBuffer();
    const start = 4 + new DataView(body).getUint32(0, true);
    const info = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 4, start - 4)));
    const columns = Object.fromEntries(info.columns.map(({ name, type, offset }) =>
      [name, new TYPES[type](body, start + offset, info.points)]));
    return new Observations(info, columns, url);
  }

  name(column, i) {
    return this.names[column][this.columns[column][i]];
  }

  // Where each lies on the map of a field.
  locate(field) {
    if (this.where === field.where) return;
    this.where = field.where;
    const { lon, lat } = this.columns, { u, v } = this.places;
    for (let i = 0; i < this.length; i++) [u[i], v[i]] = field.place(lon[i], lat[i]);
  }

  // Colour by `background` or `analysis` departure, or by `outcome`.
  paint(by, colours) {
    this.ranked = null;
    if (by === "outcome") this.#byOutcome();
    else this.#byDeparture(by, colours);
  }

  outcomeColour(name) {
    const unlisted = this.names.outcome.filter((other) => !(other in OUTCOMES));
    return OUTCOMES[name] ?? REST[unlisted.indexOf(name) % REST.length];
  }

  #byOutcome() {
    const { outcome } = this.columns, names = this.names.outcome;
    const table = Uint32Array.from(names, (name) => pixel(this.outcomeColour(name)));
    const counts = new Uint32Array(names.length);
    for (const code of outcome) counts[code]++;
    // What is rare lies on top of what is frequent.
    const ranks = [...counts.keys()].sort((a, b) => counts[b] - counts[a]);
    const rank = Uint8Array.from(names, (_, code) => ranks.indexOf(code));
    this.#arrange((i) => rank[outcome[i]], names.length, (i) => table[outcome[i]]);
    this.scale = null;
  }

  #byDeparture(by, colours) {
    const departure = this.columns[`${by}_departure`], error = this.columns.obs_error;
    const kinds = new Set(this.columns.variable);
    // Departures of several variables are comparable only when divided by their errors.
    const one = kinds.size === 1;
    const values = one ? departure : departure.map((value, i) => value / error[i]);
    const units = one ? this.info.units[this.names.variable[[...kinds][0]]] ?? "" : "σ";
    const most = rounded(share(values, 0.95));
    const table = Uint32Array.from(colours, pixel), none = pixel(NONE);
    const place = (i) => Math.min(255, Math.max(0, Math.floor((values[i] / most + 1) * 128)));
    // The larger a departure, the higher it lies; what has none lies at the bottom.
    this.#arrange(
      (i) => (Number.isNaN(values[i]) ? 0 : 1 + Math.floor(Math.abs(place(i) - 127.5))), 129,
      (i) => (Number.isNaN(values[i]) ? none : table[place(i)]),
    );
    this.scale = { most, units, values };
  }

  // Order by rank with a counting sort, and keep the colour of each.
  #arrange(rank, ranks, colour) {
    const ends = new Uint32Array(ranks + 1);
    for (let i = 0; i < this.length; i++) {
      ends[rank(i) + 1]++;
      this.colours[i] = colour(i);
    }
    for (let k = 0; k < ranks; k++) ends[k + 1] += ends[k];
    for (let i = 0; i < this.length; i++) this.order[ends[rank(i)]++] = i;
  }

  // All of them from the largest departure on, exactly; in the order of drawing where none is shown.
  get ranking() {
    if (!this.ranked) {
      const size = this.scale?.values.map((value) => (Number.isNaN(value) ? -1 : Math.abs(value)));
      this.ranked = this.order.slice().reverse();
      if (size) this.ranked.sort((a, b) => size[b] - size[a] || a - b);
    }
    return this.ranked;
  }

  // CSS pixels.
  radius(zoom) {
    const plain = [[5e4, 1.2], [1e4, 2], [2e3, 3]].find(([least]) => this.length > least)?.[1] ?? 4.5;
    return Math.min(7, plain * Math.sqrt(zoom));
  }

  // Set pixels directly: canvas paths are too slow for hundreds of thousands of discs.
  draw(context, t, ratio, zoom) {
    const { width, height } = context.canvas, { u, v } = this.places;
    const radius = Math.max(1, Math.round(this.radius(zoom) * ratio));
    const wide = width + 2 * radius, high = height + 2 * radius;
    if (this.image?.width !== wide || this.image?.height !== high) {
      this.image = new ImageData(wide, high);
      this.sheet = new OffscreenCanvas(wide, high);
    }
    const pixels = new Uint32Array(this.image.data.buffer);
    pixels.fill(0);
    const { inner, edge } = disc(radius, wide), { order, colours } = this;
    const { a, d, e, f } = t, inside = inner.length, around = edge.length;
    let drawn = 0;
    for (let k = 0; k < order.length; k++) {
      const i = order[k], x = Math.floor(e + u[i] * a), y = Math.floor(f + v[i] * d);
      if (!(x >= 0 && y >= 0 && x < width && y < height)) continue;
      const at = (y + radius) * wide + x + radius, colour = colours[i];
      for (let j = 0; j < around; j++) pixels[at + edge[j]] = EDGE;
      for (let j = 0; j < inside; j++) pixels[at + inner[j]] = colour;
      drawn++;
    }
    this.drawn = drawn;
    this.sheet.getContext("2d").putImageData(this.image, 0, 0);
    context.drawImage(this.sheet, -radius, -radius);
  }

  // The topmost observation within a distance of a place of the canvas; -1 for none.
  nearest(x, y, t, reach) {
    const { u, v } = this.places;
    let found = -1, least = reach * reach;
    for (const i of this.order) {
      const dx = t.e + u[i] * t.a - x, dy = t.f + v[i] * t.d - y, distance = dx * dx + dy * dy;
      if (distance <= least) [found, least] = [i, distance];
    }
    return found;
  }

  // Those shown at the same place, such as the levels of a sonde.
  together(i) {
    const { lon, lat } = this.columns, found = [];
    for (let k = 0; k < this.length; k++) if (lon[k] === lon[i] && lat[k] === lat[i]) found.push(k);
    return found;
  }
}

function disc(radius, wide) {
  const inner = [], edge = [], ring = radius >= 3 ? 1 : 0;
  for (let y = -radius; y <= radius; y++) {
    for (let x = -radius; x <= radius; x++) {
      const far = Math.hypot(x, y);
      if (far <= radius - ring + 0.3) inner.push(y * wide + x);
      else if (far <= radius + 0.3) edge.push(y * wide + x);
    }
  }
  return { inner: Int32Array.from(inner), edge: Int32Array.from(edge) };
}

// The quantile `part` of the magnitudes, estimated from at most some thousands of them.
function share(values, part) {
  const step = Math.max(1, Math.floor(values.length / 20000)), found = [];
  for (let i = 0; i < values.length; i += step) if (Number.isFinite(values[i])) found.push(Math.abs(values[i]));
  found.sort((a, b) => a - b);
  return found[Math.floor(part * (found.length - 1))] || 1;
}

function rounded(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.5, 2, 3, 5, 7, 10].find((step) => step * power >= value * 0.999);
}
