// Draws a field on a canvas: colours, coastlines, graticule, contours, barbs, observations; zoom and pan.

import { barbParts, CALM, KNOT } from "./barbs.js";

const APART = 60; // least distance between contour labels, CSS pixels

export class Chart {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.view = { scale: 1, x: 0, y: 0 };
    this.layers = { contours: true, barbs: false };
    this.coastlines = [];
    this.waiting = false;
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.#drag();
  }

  show(field, colours, winds) {
    const before = this.field;
    Object.assign(this, { field, winds });
    const image = field.picture(colours);
    this.picture = new OffscreenCanvas(image.width, image.height);
    this.picture.getContext("2d").putImageData(image, 0, 0);
    this.lines = field.contours();
    if (before?.pole !== field.pole) this.home();
    if (before?.where !== field.where) {
      this.coast = this.#path(this.coastlines);
      this.graticule = this.#path(graticule(field.pole));
    }
    this.draw();
  }

  home() {
    this.view = { scale: 1, x: 0, y: 0 };
    this.draw();
  }

  // The rectangle of the whole map at scale 1, in pixels of the canvas.
  get frame() {
    const { width, height } = this.canvas;
    const ratio = this.field?.pole ? 1 : (this.field.right - this.field.left) / (this.field.top - this.field.bottom);
    const w = Math.min(width, height * ratio), h = w / ratio;
    return { x: (width - w) / 2, y: (height - h) / 2, w, h };
  }

  #transform() {
    const f = this.frame, { scale, x, y } = this.view;
    return { a: f.w * scale, d: f.h * scale, e: f.x + x, f: f.y + y };
  }

  toMap(clientX, clientY) {
    const [x, y, t] = this.onCanvas(clientX, clientY);
    return [(x - t.e) / t.a, (y - t.f) / t.d];
  }

  // A place of the screen on the canvas, the transform of the map to it, and canvas pixels per CSS pixel.
  onCanvas(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect(), ratio = this.canvas.width / box.width;
    return [(clientX - box.left) * ratio, (clientY - box.top) * ratio, this.#transform(), ratio];
  }

  toClient(u, v) {
    const box = this.canvas.getBoundingClientRect(), t = this.#transform();
    const ratio = this.canvas.width / box.width;
    return [(t.e + u * t.a) / ratio + box.left, (t.f + v * t.d) / ratio + box.top];
  }

  draw() {
    if (this.waiting || !this.field) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.#paint();
    });
  }

  #paint() {
    const { canvas, context: c } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((n) => Math.round(n * ratio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.classList.toggle("closer", this.view.scale > 1);
    const t = this.#transform();
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, width, height);
    c.save();
    c.beginPath();
    c.rect(t.e, t.f, t.a, t.d);
    c.clip();
    c.imageSmoothingEnabled = true;
    c.imageSmoothingQuality = "high";
    c.drawImage(this.picture, t.e, t.f, t.a, t.d);
    const stroke = (path, colour, pixels) => {
      const drawn = new Path2D();
      drawn.addPath(path, new DOMMatrix([t.a, 0, 0, t.d, t.e, t.f]));
      c.strokeStyle = colour;
      c.lineWidth = pixels * ratio;
      c.stroke(drawn);
    };
    stroke(this.graticule, "rgba(40, 50, 60, 0.25)", 0.6);
    stroke(this.coast, "rgba(20, 26, 32, 0.9)", 0.9);
    if (this.layers.contours) {
      stroke(this.lines, "rgba(20, 26, 32, 0.65)", 0.8);
      this.#labels(t, ratio);
    }
    if (this.layers.barbs && this.winds) this.#barbs(t, ratio);
    if (this.points) {
      this.points.locate(this.field);
      this.points.draw(c, t, ratio, this.view.scale);
    }
    if (this.mark) this.#mark(this.mark, t, ratio);
    if (this.picked) this.#mark(this.picked, t, ratio);
    c.restore();
  }

  #path(lines) {
    const path = new Path2D();
    for (const line of lines) {
      let before = null;
      for (const [lon, lat] of line) {
        const place = this.field.place(lon, lat);
        const jump = before && Math.hypot(place[0] - before[0], place[1] - before[1]) > 0.5;
        if (before && !jump) path.lineTo(...place);
        else path.moveTo(...place);
        before = place;
      }
    }
    return path;
  }

  // Contour labels, none closer than APART to another.
  #labels(t, ratio) {
    const c = this.context, { field } = this, taken = new Set(), apart = APART * ratio;
    c.save();
    c.font = `${10 * ratio}px system-ui, sans-serif`;
    [c.textAlign, c.textBaseline, c.lineJoin, c.lineWidth] = ["center", "middle", "round", 3 * ratio];
    [c.strokeStyle, c.fillStyle] = ["rgba(255, 255, 255, 0.85)", "#12161c"];
    for (const { u, v, du, dv, level } of field.labels) {
      const x = t.e + u * t.a, y = t.f + v * t.d;
      if (x < apart / 4 || y < apart / 4 || x > c.canvas.width - apart / 4 || y > c.canvas.height - apart / 4) continue;
      const [i, j] = [Math.round(x / apart), Math.round(y / apart)];
      if ([-1, 0, 1].some((k) => [-1, 0, 1].some((l) => taken.has(`${i + k} ${j + l}`)))) continue;
      taken.add(`${i} ${j}`);
      const turn = Math.atan(dv * t.d / (du * t.a || 1e-9)); // never upside down
      c.setTransform(Math.cos(turn), Math.sin(turn), -Math.sin(turn), Math.cos(turn), x, y);
      const text = String(Number(field.shown(level).toPrecision(5)));
      c.strokeText(text, 0, 0);
      c.fillText(text, 0, 0);
    }
    c.restore();
  }

  #barbs(t, ratio) {
    const { u, v } = this.winds, c = this.context, spacing = 38 * ratio;
    c.strokeStyle = c.fillStyle = "rgba(10, 14, 18, 0.85)";
    c.lineWidth = 1.1 * ratio;
    for (let y = t.f + spacing / 2; y < t.f + t.d; y += spacing) {
      if (y < 0 || y > this.canvas.height) continue;
      for (let x = t.e + spacing / 2; x < t.e + t.a; x += spacing) {
        if (x < 0 || x > this.canvas.width) continue;
        const place = [(x - t.e) / t.a, (y - t.f) / t.d];
        const [east, north] = u.axes(u.position(...place)[0]);
        const [du, dv] = [u.at(...place), v.at(...place)];
        if (Number.isNaN(du + dv)) continue;
        const dx = du * east[0] + dv * north[0], dy = du * east[1] + dv * north[1];
        barb(c, x, y, Math.atan2(-dy, dx), Math.hypot(du, dv) / KNOT, 17 * ratio, u.position(...place)[1] < 0);
      }
    }
  }

  #mark(place, t, ratio) {
    const [u, v] = this.field.place(...place), c = this.context;
    c.beginPath();
    c.arc(t.e + u * t.a, t.f + v * t.d, (place === this.picked ? 9 : 5) * ratio, 0, 2 * Math.PI);
    c.strokeStyle = "#ffffff";
    c.lineWidth = 4 * ratio;
    c.stroke();
    c.strokeStyle = "#b3261e";
    c.lineWidth = 2 * ratio;
    c.stroke();
  }

  zoom(factor, clientX, clientY) {
    const box = this.canvas.getBoundingClientRect(), ratio = this.canvas.width / box.width;
    const x = ((clientX ?? box.left + box.width / 2) - box.left) * ratio;
    const y = ((clientY ?? box.top + box.height / 2) - box.top) * ratio;
    const scale = Math.min(40, Math.max(1, this.view.scale * factor)), f = this.frame;
    const grown = scale / this.view.scale;
    this.view = {
      scale,
      x: scale === 1 ? 0 : x - f.x - (x - f.x - this.view.x) * grown,
      y: scale === 1 ? 0 : y - f.y - (y - f.y - this.view.y) * grown,
    };
    this.draw();
  }

  // Pan by quarters of the canvas: this many to the right and down.
  pan(right, down) {
    if (this.view.scale === 1) return;
    this.view = { ...this.view, x: this.view.x + right * this.canvas.width / 4, y: this.view.y + down * this.canvas.height / 4 };
    this.draw();
  }

  #wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
  }

  // One pointer pans, two pinch; at scale 1 a finger scrolls the page.
  #drag() {
    const down = new Map(), { canvas } = this;
    let from = null;
    const begin = () => {
      const held = [...down.values()];
      from = held.length ? { ...middleOf(held), view: { ...this.view } } : null;
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!down.size) this.moved = false;
      down.set(event.pointerId, event);
      canvas.setPointerCapture(event.pointerId);
      begin();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!down.has(event.pointerId)) return;
      down.set(event.pointerId, event);
      const now = middleOf([...down.values()]);
      if (down.size > 1) {
        this.moved = true;
        this.zoom(now.apart / from.apart, now.x, now.y);
        return begin();
      }
      const ratio = window.devicePixelRatio || 1, [dx, dy] = [now.x - from.x, now.y - from.y];
      if (Math.hypot(dx, dy) > 4) this.moved = true;
      if (!this.moved || this.view.scale === 1) return;
      this.view = { ...from.view, x: from.view.x + dx * ratio, y: from.view.y + dy * ratio };
      this.draw();
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        down.delete(event.pointerId);
        begin();
      });
    }
  }
}

// Midpoint and distance of the pointers.
function middleOf(pointers) {
  const [a, b] = [pointers[0], pointers.at(-1)];
  const [x, y] = [(a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2];
  return { x, y, apart: Math.max(1, Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY)) };
}

function graticule(pole) {
  const lines = [];
  const lats = pole ? (pole > 0 ? [0, 90] : [-90, 0]) : [-90, 90];
  for (let lon = -180; lon < 180; lon += 30) {
    const line = [];
    for (let lat = lats[0]; lat <= lats[1]; lat += 2) line.push([lon + 1e-6, lat]);
    lines.push(line);
  }
  for (let lat = -60; lat <= 60; lat += 30) {
    if (pole && lat * pole < 0) continue;
    const line = [];
    for (let lon = -179.9; lon <= 179.95; lon += 2) line.push([lon, lat]);
    lines.push(line);
  }
  return lines;
}

function barb(c, x, y, direction, knots, length, south) {
  c.save();
  c.translate(x, y);
  c.beginPath();
  if (knots < CALM) c.arc(0, 0, length / 7, 0, 2 * Math.PI);
  else c.rotate(direction + Math.PI);
  const { lines, flags } = barbParts(knots, length, south);
  for (const [first, ...rest] of [...lines, ...flags]) {
    c.moveTo(...first);
    for (const place of rest) c.lineTo(...place);
  }
  c.stroke();
  c.restore();
}
