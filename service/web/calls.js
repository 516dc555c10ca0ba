// The API calls behind a panel, as curl and as Python, to copy. They are those of the page, but take the
// key from the environment: the key itself is never written.

import { element } from "./api.js";

const KEY = "APPA_API_KEY"; // as the command line takes it
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const hasKey = () => sessionStorage.getItem("appa-key") !== null;
const typeOf = ({ body, file }) => (body ? "application/json" : file ? "application/octet-stream" : "");

// `{ url, method, body, file, binary }`: a JSON body or a file to send; a binary answer goes to a file.
export function curlOf(call) {
  const { url, method = "GET", body, file, binary } = call, type = typeOf(call);
  return [
    `curl ${quoted(String(url))}`, hasKey() && `-H "Authorization: Bearer $${KEY}"`, method !== "GET" && `-X ${method}`,
    type && `-H 'Content-Type: ${type}'`, body && `-d ${quoted(JSON.stringify(body))}`,
    file && `--data-binary @${quoted(file)}`, binary && "-o answer.bin",
  ].filter(Boolean).join(" ");
}

export function pythonOf(call) {
  const { url, method = "GET", body, file, binary } = call, type = typeOf(call);
  const headers = [hasKey() && `"Authorization": "Bearer " + os.environ["${KEY}"]`, type && `"Content-Type": "${type}"`].filter(Boolean);
  const parts = [JSON.stringify(method), JSON.stringify(String(url)), headers.length && `headers={${headers.join(", ")}}`,
    body && `content=${JSON.stringify(JSON.stringify(body))}`, file && `content=Path(${JSON.stringify(file)}).read_bytes()`];
  const imports = [hasKey() && "import os", file && "from pathlib import Path", "import httpx"].filter(Boolean).join("\n");
  return `${imports}\nanswer = httpx.request(${parts.filter(Boolean).join(", ")}).${binary ? "content" : "text"}`;
}

const made = new Map(); // by panel, so that updates keep it open and keep a text selection

// The calls of a panel as a collapsed element; the same element is returned for the same name.
export function callsOf(panel, calls) {
  const texts = calls.flatMap((call) => [["curl", curlOf(call)], ["Python", pythonOf(call)]]), now = JSON.stringify(texts);
  if (!made.has(panel)) {
    const details = element("details", undefined, "calls");
    details.append(element("summary", `API: ${panel}`), element("div"));
    made.set(panel, { details });
  }
  const one = made.get(panel);
  if (one.shown !== now) {
    one.shown = now;
    one.details.lastChild.replaceChildren(...texts.flatMap(([name, text]) => {
      const code = element("pre", text), button = element("button", `copy ${name}`);
      button.type = "button";
      button.addEventListener("click", () => copy(code, button));
      return [button, code];
    }));
  }
  return one.details;
}

// Put them behind an element of the panel.
export function showCalls(before, panel, calls) {
  const details = callsOf(panel, calls);
  if (before.nextSibling !== details) before.after(details);
}

async function copy(code, button) {
  getSelection().selectAllChildren(code); // without TLS there is no clipboard access: select it for Ctrl+C
  const name = button.textContent;
  const done = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
  button.textContent = done ? "copied" : "selected: Ctrl+C";
  setTimeout(() => { button.textContent = name; }, 2000);
}
