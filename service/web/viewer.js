// The viewer: asks the API every few seconds and fills the tables. Text only ever goes into
// textContent, so nothing that a sender wrote is read as markup.

import { apiUrl, byId, element, fillRows, get, getJson, keyForm, send, tableRow } from "./api.js";
import { showCalls } from "./calls.js";
import { jobCall, jobForm } from "./job_form.js";
import { showReport, uploadCall, uploads } from "./uploads.js";

const EVERY = 3000;
const STATES = {
  succeeded: "good", ingested: "good", failed: "bad", rejected: "bad", cancelled: "bad",
  running: "busy", ingesting: "busy", cancelling: "busy",
};
const EVENTS = { "analysis.published": "good", "cycle.failed": "bad", "cycle.outside_limits": "busy", "cycle.worse_than_cold": "busy" };
let shown = "";

const fill = (id, rows) => fillRows(byId(id).tBodies[0], rows.map(tableRow));

// What an event says in two cells: its hour or cycle with what went wrong, and its result on the map.
function about({ data }) {
  const outside = (data.control?.outside ?? []).map((line) => `${line.network} ${line.statistic}`);
  const words = [data.cycle ?? data.key ?? when(data.valid_time), data.kind, data.flavour, data.message, ...outside.slice(0, 3)];
  const link = data.analysis_id ? element("a", data.analysis_id) : "";
  if (link) link.href = `web/map.html#${new URLSearchParams({ result: data.analysis_id, time: data.valid_time ?? "" })}`;
  return [words.filter(Boolean).join(" · "), link];
}

function action(name, label, act) {
  const button = element("button", name);
  button.type = "button";
  button.setAttribute("aria-label", `${name} ${label}`);
  button.addEventListener("click", () => act().then(refresh).catch((error) => { byId("job-said").textContent = error.message; }));
  return button;
}
const cancel = (job) => (job.state === "queued" || job.state === "running"
  ? action("cancel", job.id, () => send("DELETE", apiUrl(`v1/jobs/${encodeURIComponent(job.id)}`))) : "");

const when = (time) => (time ? time.replace("T", " ").slice(0, 16) + "Z" : "");
const state = (name) => element("span", name, STATES[name] ?? "");
function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  const i = bytes ? Math.min(3, Math.floor(Math.log10(bytes) / 3)) : 0;
  return `${(bytes / 1000 ** i).toFixed(i ? 1 : 0)} ${units[i]}`;
}

function progressOf(job) {
  const { phase, step, steps, queue_position: place } = job.progress;
  if (job.state === "queued") return place === null ? "" : `${place} ahead`;
  if (job.state !== "running") return job.error ? job.error.code : "";
  const bar = element("progress");
  if (steps) Object.assign(bar, { value: step, max: steps });
  const cell = element("span");
  cell.append(bar, ` ${phase}${steps ? ` ${step}/${steps}` : ""}`);
  return cell;
}

async function download(url, name) {
  const blob = await (await get(url)).blob();
  const link = Object.assign(element("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function showAnalysis(analysis) {
  if (!analysis || analysis.id === shown) return;
  shown = analysis.id;
  const url = (file) => `v1/analyses/${encodeURIComponent(analysis.id)}/${encodeURIComponent(file)}`;
  byId("analysis-when").textContent = `${analysis.kind}, ${when(analysis.valid_time)}`;
  const flags = analysis.flags.length ? ` · ${analysis.flags.join(", ")}` : "";
  byId("analysis-note").textContent =
    `${analysis.members} members, ${analysis.observations.used ?? 0} observations used${flags}`;
  fill("files", analysis.files.map((file) => {
    const link = Object.assign(element("a", file.name), { href: url(file.name) });
    link.addEventListener("click", (event) => {
      if (!sessionStorage.getItem("appa-key")) return; // the browser does it itself, with ranges
      event.preventDefault();
      download(url(file.name), file.name);
    });
    return [link, size(file.size), element("code", file.sha256.slice(0, 16))];
  }));
  const picture = analysis.files.find((file) => file.media_type === "image/png");
  showCalls(byId("files"), "latest analysis", [{ url: apiUrl(`v1/analyses/${encodeURIComponent(analysis.id)}`) },
    ...(picture ? [{ url: apiUrl(url(picture.name)), binary: true }] : [])]);
  const image = byId("quicklook");
  image.hidden = !picture;
  if (!picture) return;
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(await (await get(url(picture.name))).blob());
  image.alt = `Quick look of ${analysis.id}`;
}

function showReadiness(ready, models) {
  const pill = byId("readiness");
  pill.className = `pill ${ready ? "good" : "bad"}`;
  pill.textContent = ready ? `ready · ${models.join(", ")}` : "not ready";
}

async function readiness() {
  const answer = await fetch("health/ready");
  const body = await answer.json();
  const found = answer.ok ? body : body.context ?? { models: [], checks: {} };
  showReadiness(answer.ok, found.models ?? []);
  const missing = Object.entries(found.checks ?? {}).filter(([, check]) => !check.ok);
  byId("readiness").title = missing.map(([name, check]) => `${name}: ${check.detail}`).join("\n");
}

function networks(names) {
  const select = byId("report-type");
  if (select.options.length - 1 === names.length) return;
  select.append(...names.slice(select.options.length - 1).map((name) => element("option", name)));
}

// Each panel by the id of its last element, and the request behind it.
const PANELS = {
  workers: "v1/capabilities", jobs: "v1/jobs?limit=15", analyses: "v1/analyses?limit=10", batches: "v1/batches?limit=15",
  events: "v1/events/newest?limit=12",
};
const NAMES = { batches: "uploads" };
const asked = Object.entries(PANELS).map(([id, path]) => [id, apiUrl(path)]);

function sayCalls() {
  showCalls(byId("report"), "send observations", [uploadCall()]);
  showCalls(byId("job-form"), "submit a job", [jobCall()]);
  for (const [id, url] of asked) showCalls(byId(id), NAMES[id] ?? id, [{ url }]);
}

async function refresh() {
  sayCalls();
  const [can, jobs, analyses, batches, events] = await Promise.all(asked.map(([, url]) => getJson(url)));
  networks(can.networks);
  fill("workers", can.workers.map((w) => [
    w.name, w.queues.join(", "), w.device,
    element("span", w.ready ? (w.busy_with ? "busy" : "ready") : "starting", w.ready ? "good" : "busy"),
  ]));
  fill("jobs", jobs.items.map((j) => [when(j.created), j.spec.kind, state(j.state), progressOf(j), cancel(j)]));
  fill("analyses", analyses.items.map((a) => [
    when(a.valid_time), a.kind + (a.flavour ? ` (${a.flavour})` : ""), a.members,
    a.observations.used ?? "",
  ]));
  fill("batches", batches.items.map((b) => [
    when(b.created), b.file_name || b.container, state(b.state),
    b.summary ? `${b.summary.used} / ${b.summary.observations}` : "",
    action("report", b.id, async () => showReport(b)),
  ]));
  fill("events", events.items.map((event) => [when(event.time), element("span", event.type, EVENTS[event.type] ?? ""), ...about(event)]));
  await showAnalysis(analyses.items[0]);
}

keyForm(() => refresh().catch(() => {}));
uploads(() => refresh().catch(() => {}));
jobForm(() => sayCalls(), refresh).catch((error) => { byId("job-said").textContent = error.message; });

async function again() {
  if (!document.hidden) {
    await readiness().catch(() => showReadiness(false, []));
    await refresh().catch(() => {});
  }
  setTimeout(again, EVERY);
}
again();
