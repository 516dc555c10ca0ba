// Upload files by choosing or dropping them: transfer progress, then the decoder's report.

import { apiUrl, byId, element, getJson, problemText, tableRow } from "./api.js";
import { callsOf } from "./calls.js";

const ENDED = new Set(["ingested", "rejected", "failed"]);
const EVERY = 1000;

export const uploadCall = () => ({
  url: apiUrl("v1/observations", { file_name: "observations.bufr", report_type: byId("report-type").value }),
  method: "POST", file: "observations.bufr",
});

// `fetch` does not report upload progress; XMLHttpRequest does.
function sendFile(file, onProgress) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest(), key = sessionStorage.getItem("appa-key");
    request.open("POST", apiUrl("v1/observations", { file_name: file.name, report_type: byId("report-type").value }));
    if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "json";
    request.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    request.onload = () => {
      if (request.status === 401) byId("key-form").hidden = false;
      if (request.status < 300) done(request.response);
      else failed(new Error(problemText(request.response, request.statusText)));
    };
    request.onerror = () => failed(new Error("The connection was lost; send the file again: the same content is the same upload."));
    request.send(file);
  });
}

async function follow(id, onState) {
  for (;;) {
    const batch = await getJson(apiUrl(`v1/observations/${encodeURIComponent(id)}`));
    onState(batch);
    if (ENDED.has(batch.state)) return batch;
    await new Promise((done) => setTimeout(done, EVERY));
  }
}

async function upload(file) {
  const line = element("li"), bar = element("progress"), said = element("span");
  bar.setAttribute("aria-label", `sent of ${file.name}`);
  line.append(element("strong", file.name), " ", bar, " ", said);
  byId("sent").prepend(line);
  try {
    const batch = await sendFile(file, (loaded, total) => {
      Object.assign(bar, { value: loaded, max: total });
      said.textContent = `${Math.round(100 * loaded / total)} %`;
    });
    Object.assign(bar, { value: 1, max: 1 });
    showReport(await follow(batch.id, ({ id, state }) => { said.textContent = `${id}: ${state}`; }));
  } catch (error) {
    bar.remove();
    said.textContent = error.message;
    said.className = "bad";
  }
}

function counts(title, values) {
  const table = element("table");
  table.append(element("caption", title), ...Object.entries(values).map(([name, count]) => tableRow([name.replaceAll("_", " "), count])));
  return table;
}

// What became of an upload: counts, rejections by check, and the decoder's own report.
export function showReport(batch) {
  const parts = [element("h3", `${batch.file_name || batch.container} · ${batch.id}`),
    element("p", [batch.state, batch.message, batch.error?.detail].filter(Boolean).join(": "))];
  if (batch.summary) {
    const { messages, undecoded, observations, used, by_variable: variables, by_report_type: networks, by_rejection: rejections, decode_report: own } = batch.summary;
    parts.push(counts("values", { messages, undecoded, observations, used }));
    for (const [title, values] of [["by variable", variables], ["by network", networks], ["rejected by", rejections]]) {
      if (Object.keys(values).length) parts.push(counts(title, values));
    }
    if (Object.keys(own).length) {
      const details = element("details");
      details.append(element("summary", "report of the decoder"), element("pre", JSON.stringify(own, null, 2)));
      parts.push(details);
    }
  }
  byId("report").replaceChildren(...parts, callsOf("report", [{ url: apiUrl(`v1/observations/${encodeURIComponent(batch.id)}`) }]));
}

export function uploads(then) {
  const zone = byId("drop"), send = (files) => Promise.all([...files].map(upload)).then(then);
  byId("files-to-send").addEventListener("change", (event) => {
    send(event.target.files);
    event.target.value = "";
  });
  for (const name of ["dragenter", "dragover"]) {
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    send(event.dataTransfer.files);
  });
}
