// The calls behind what a page shows, as curl and as Python, to copy. The key is left out.

import { byId, element } from "./api.js";

const HEADER = "Authorization: Bearer YOUR_KEY";
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// `{ url, method, body, file, binary }`: a JSON body or a file to send; a binary answer goes to a file.
export function curlOf({ url, method = "GET", body, file, binary }) {
  return [
    `curl ${quoted(String(url))}`, `-H '${HEADER}'`, method !== "GET" && !file && `-X ${method}`,
    body && `-H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}`,
    file && `--data-binary @${quoted(file)}`, binary && "-o answer.bin",
  ].filter(Boolean).join(" ");
}

export function pythonOf({ url, method = "GET", body, file }) {
  const parts = [JSON.stringify(method), JSON.stringify(String(url)), 'headers={"Authorization": "Bearer YOUR_KEY"}',
    body && `content=${JSON.stringify(JSON.stringify(body))}`, file && `content=open(${JSON.stringify(file)}, "rb")`];
  return `import httpx\nanswer = httpx.request(${parts.filter(Boolean).join(", ")})`;
}

let shown = "";

// Fill the element #call of a page.
export function showCalls(calls) {
  const texts = calls.flatMap((call) => [["curl", curlOf(call)], ["Python", pythonOf(call)]]);
  if (JSON.stringify(texts) === shown) return; // what somebody selects stays selected
  shown = JSON.stringify(texts);
  byId("call").replaceChildren(...texts.flatMap(([name, text]) => {
    const code = element("pre", text), button = element("button", `copy ${name}`);
    button.type = "button";
    button.addEventListener("click", () => copy(code, button));
    return [button, code];
  }));
}

async function copy(code, button) {
  getSelection().selectAllChildren(code); // what a page without TLS can do: Ctrl+C copies it
  const name = button.textContent;
  const done = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
  button.textContent = done ? "copied" : "selected: Ctrl+C";
  setTimeout(() => { button.textContent = name; }, 2000);
}
