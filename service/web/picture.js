// Pictures to keep: the map, or the charts of a panel, as PNG with what they show written on them.

import { element } from "./api.js";

const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font", "text-anchor"];
const MARGIN = 12, LINE = 20, GAP = 10, ENTRY = 220;

export const compact = (time) => `${time.slice(0, 13).replace(/[-:]/g, "")}Z`;

// The colours of the page, so that a picture of a dark page is dark.
function ink(node) {
  let ground = node;
  while (ground.parentElement && getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  return { text: getComputedStyle(node).color, ground: getComputedStyle(ground).backgroundColor };
}

// A canvas with a title, lines below it, and room for the content; `scale` is pixels per CSS pixel.
function sheet(node, title, lines, width, height, scale) {
  const { text, ground } = ink(node), top = MARGIN + LINE * (1 + lines.length);
  const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round((top + height) * scale)), c = canvas.getContext("2d");
  c.scale(scale, scale);
  c.fillStyle = ground;
  c.fillRect(0, 0, width, top + height);
  c.fillStyle = text;
  c.font = "600 16px system-ui, sans-serif";
  c.fillText(title, MARGIN, MARGIN + 12, width - 2 * MARGIN);
  c.font = "13px system-ui, sans-serif";
  lines.forEach((line, i) => c.fillText(line, MARGIN, MARGIN + 12 + LINE * (i + 1), width - 2 * MARGIN));
  return { canvas, c, top };
}

async function keep(canvas, name) {
  const link = element("a");
  link.href = URL.createObjectURL(await canvas.convertToBlob({ type: "image/png" }));
  link.download = `${name}.png`;
  link.click();
  URL.revokeObjectURL(link.href);
}

// `bars`: canvases of colours; `legend`: [name, colour] of discs on the map.
export async function saveMap(map, bars, legend, title, lines, name) {
  const scale = map.width / map.clientWidth, tall = Math.max(...bars.map((bar) => bar.height)) + 2 * GAP;
  const columns = Math.max(1, Math.floor(map.clientWidth / ENTRY)), rows = Math.ceil(legend.length / columns);
  const { canvas, c, top } = sheet(map.parentElement, title, lines, map.clientWidth, map.clientHeight + tall + LINE * rows, scale);
  c.drawImage(map, 0, top, map.clientWidth, map.clientHeight);
  let x = MARGIN;
  for (const bar of bars) {
    c.drawImage(bar, x, top + map.clientHeight + GAP);
    x += bar.width + 2 * MARGIN;
  }
  const ink = c.fillStyle;
  legend.forEach(([text, colour], i) => {
    const left = MARGIN + ENTRY * (i % columns), y = top + map.clientHeight + tall + LINE * Math.floor(i / columns);
    c.fillStyle = colour;
    c.beginPath();
    c.arc(left + 6, y, 5, 0, 2 * Math.PI);
    c.fill();
    c.fillStyle = ink;
    c.fillText(text, left + 18, y + 5, ENTRY - 24);
  });
  await keep(canvas, name);
}

// A chart as a stand-alone image: styles from the style sheet are written into its elements.
async function imageOf(svg, width, height) {
  const copy = svg.cloneNode(true), parts = svg.querySelectorAll("*");
  copy.querySelectorAll("*").forEach((part, i) => {
    const style = getComputedStyle(parts[i]);
    for (const name of STYLES) part.style.setProperty(name, style.getPropertyValue(name));
  });
  Object.entries({ width, height, xmlns: "http://www.w3.org/2000/svg" }).forEach(([name, value]) => copy.setAttribute(name, value));
  const blob = new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  await image.decode().finally(() => URL.revokeObjectURL(image.src));
  return image;
}

// `charts`: { svg, caption }; `legend`: [name, colour, dash of its line]; drawn in so many columns.
export async function saveCharts(node, charts, { title, lines, legend = [], columns = 1, name }) {
  const sizes = charts.map(({ svg, caption }) => ({ w: svg.viewBox.baseVal.width, h: svg.viewBox.baseVal.height + (caption ? LINE : 0) }));
  const wide = Math.max(...sizes.map(({ w }) => w)) + GAP, rows = [];
  sizes.forEach(({ h }, i) => { rows[Math.floor(i / columns)] = Math.max(rows[Math.floor(i / columns)] ?? 0, h + GAP); });
  const { canvas, c, top } = sheet(node, title, lines, 2 * MARGIN + wide * columns,
    rows.reduce((sum, h) => sum + h, MARGIN) + LINE * legend.length, 2);
  legend.forEach(([text, colour, dash], i) => {
    const y = top + LINE * i + 4;
    c.fillText(text, MARGIN + 34, y + 4);
    c.strokeStyle = colour;
    c.lineWidth = 3;
    c.setLineDash(dash ? dash.split(" ").map(Number) : []);
    c.beginPath();
    c.moveTo(MARGIN, y);
    c.lineTo(MARGIN + 28, y);
    c.stroke();
  });
  for (const [i, { svg, caption }] of charts.entries()) {
    const x = MARGIN + wide * (i % columns), row = Math.floor(i / columns);
    const y = top + LINE * legend.length + rows.slice(0, row).reduce((sum, h) => sum + h, 0), down = caption ? LINE : 0;
    if (caption) c.fillText(caption, x, y + 12, wide - GAP);
    const { w, h } = sizes[i];
    c.drawImage(await imageOf(svg, w * 2, (h - down) * 2), x, y + down, w, h - down);
  }
  await keep(canvas, name);
}
