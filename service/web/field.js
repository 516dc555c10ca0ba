// A field of /v1/fields: its values, where they lie, and the geometry of its view.

import { apiUrl, get } from "./api.js";

const EARTH = 6371229;
const RAD = Math.PI / 180;
const LABELLED = 3; // a contour may be labelled in every third cell

export class Field {
  constructor(info, values, url) {
    Object.assign(this, { info, values, url });
    const { rows, columns, extent } = info.grid;
    Object.assign(this, { rows, columns });
    [this.left, this.bottom, this.right, this.top] = extent;
    this.where = `${info.grid.projection} ${extent}`;
    const centre = /\+lon_0=(-?[\d.]+)/.exec(info.grid.projection);
    this.centre = centre ? Number(centre[1]) : 0;
    this.pole = info.grid.latitude ? 0 : info.grid.projection.includes("+lat_0=-90") ? -1 : 1;
  }

  static async load(query) {
    const url = apiUrl("v1/fields", query);
    const body = await (await get(url)).arrayBuffer();
    const length = new DataView(body).getUint32(0, true);
    const info = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 4, length)));
    return new Field(info, new Float32Array(body, 4 + length), url);
  }

  // Map coordinates run from 0 to 1, rightward and downward.

  place(lon, lat) {
    let x = lon, y = lat;
    if (this.pole) {
      const r = 2 * EARTH * Math.tan((90 - this.pole * lat) * RAD / 2);
      const turn = (lon - this.centre) * RAD;
      [x, y] = [r * Math.sin(turn), -this.pole * r * Math.cos(turn)];
    } else {
      x = this.left + ((((lon - this.left) % 360) + 360) % 360);
    }
    return [(x - this.left) / (this.right - this.left), (this.top - y) / (this.top - this.bottom)];
  }

  position(u, v) {
    const x = this.left + u * (this.right - this.left);
    const y = this.top - v * (this.top - this.bottom);
    if (!this.pole) return [((x + 540) % 360) - 180, y];
    const lat = this.pole * (90 - 2 * Math.atan(Math.hypot(x, y) / (2 * EARTH)) / RAD);
    const lon = Math.atan2(x, -this.pole * y) / RAD + this.centre;
    return [((lon + 540) % 360) - 180, lat];
  }

  cell(u, v) {
    if (!(u >= 0 && u < 1 && v >= 0 && v < 1)) return null;
    return [Math.floor(v * this.rows), Math.floor(u * this.columns)];
  }

  at(u, v) {
    const cell = this.cell(u, v);
    return cell ? this.values[cell[0] * this.columns + cell[1]] : NaN;
  }

  shown(value) {
    const { scale, offset } = this.info.display;
    return value * scale + offset;
  }

  // Unit vectors eastward and northward on the map at a longitude, y upward.
  axes(lon) {
    if (!this.pole) return [[1, 0], [0, 1]];
    const turn = (lon - this.centre) * RAD;
    const [s, c] = [Math.sin(turn), Math.cos(turn)];
    return this.pole > 0 ? [[c, s], [-s, c]] : [[c, -s], [s, c]];
  }

  picture(colours) {
    const [low, high] = this.info.range;
    // Pixels as 32-bit numbers, red in the lowest byte.
    const table = Uint32Array.from(colours, (text) => {
      const [red, green, blue] = [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
      return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
    const image = new ImageData(this.columns, this.rows);
    const pixels = new Uint32Array(image.data.buffer), share = 256 / (high - low);
    for (let i = 0; i < pixels.length; i++) {
      const value = this.values[i];
      if (!Number.isNaN(value)) pixels[i] = table[Math.min(255, Math.max(0, Math.floor((value - low) * share)))];
    }
    return image;
  }

  // Lines of equal value (marching squares between the centres of cells), as one path of the map; their
  // `labels` are places where the value of a line may be written, with the direction of the line.
  contours() {
    this.labels = [];
    const path = new Path2D(), step = this.info.contour, { rows, columns, values } = this;
    const zero = -this.info.display.offset / this.info.display.scale; // round values in display units
    if (!(step > 0)) return path;
    const signed = /^(increment|difference)/.test(this.info.statistic); // the zero contour would only show noise
    const x = (c) => (c + 0.5) / columns, y = (r) => (r + 0.5) / rows;
    for (let r = 0; r + 1 < rows; r++) {
      for (let c = 0; c + 1 < columns; c++) {
        const i = r * columns + c;
        const corner = [values[i], values[i + 1], values[i + columns + 1], values[i + columns]];
        const low = Math.min(...corner), high = Math.max(...corner);
        if (Number.isNaN(low + high)) continue;
        for (let k = Math.ceil((low - zero) / step); zero + k * step <= high; k++) {
          if (k === 0 && signed) continue;
          const level = zero + k * step;
          const cuts = crossings(corner, level).map(([dx, dy]) => [x(c + dx), y(r + dy)]);
          for (let n = 0; n + 1 < cuts.length; n += 2) {
            path.moveTo(...cuts[n]);
            path.lineTo(...cuts[n + 1]);
            const [[u, v], [du, dv]] = [cuts[n], cuts[n + 1]];
            if ((r + c) % LABELLED === 0) this.labels.push({ u, v, du: du - u, dv: dv - v, level });
          }
        }
      }
    }
    return path;
  }
}

const CORNERS = [[0, 0], [1, 0], [1, 1], [0, 1]];

function crossings(corner, level) {
  const found = [];
  for (let k = 0; k < 4; k++) {
    const [a, b] = [corner[k], corner[(k + 1) % 4]];
    if ((a < level) === (b < level)) continue;
    const share = (level - a) / (b - a);
    const [from, to] = [CORNERS[k], CORNERS[(k + 1) % 4]];
    found.push([from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1])]);
  }
  return found;
}
