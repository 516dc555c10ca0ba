// Shared by all pages: requests with the key of this session, errors, elements that hold text only.

export const byId = (id) => document.getElementById(id);
const ROOT = new URL("..", import.meta.url);

export function apiUrl(path, query = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

async function ask(url, options = {}) {
  const key = sessionStorage.getItem("appa-key");
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(url, { ...options, headers });
  if (answer.status === 401) byId("key-form").hidden = false;
  if (answer.ok) return answer;
  throw new Error(problemText(await answer.json().catch(() => null), answer.statusText));
}

// The message of a problem document; for a request that does not fit its schema, that of each field.
export const problemText = (problem, otherwise) =>
  problem?.errors?.map(({ field, message }) => `${field}: ${message}`).join("; ") || problem?.detail || otherwise;

export const get = (url) => ask(url);

// An idempotent write: a repeated request with the same key changes nothing more.
export async function send(method, url, body) {
  const once = Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("-");
  const headers = { "Idempotency-Key": once, ...(body === undefined ? {} : { "Content-Type": "application/json" }) };
  return (await ask(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) })).json();
}

export const getJson = async (url) => (await get(url)).json();

export function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

export function tableRow(cells) {
  const row = element("tr");
  row.append(...cells.map((cell) => {
    const td = element("td");
    td.append(cell instanceof Node ? cell : String(cell ?? ""));
    return td;
  }));
  return row;
}

// Replace the rows of a table; what had the focus keeps it, by its label.
export function fillRows(body, rows) {
  const focused = body.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  body.replaceChildren(...rows);
  if (focused) body.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

export function shape(name, values, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// The key of this session: prompted for when the gateway requires one, and changed by the button `key`.
export function keyForm(then) {
  const form = byId("key-form"), button = element("button", "key");
  button.type = "button";
  button.setAttribute("aria-label", "enter or change the API key");
  button.addEventListener("click", () => {
    form.hidden = !form.hidden;
    if (!form.hidden) byId("key").focus();
  });
  form.before(button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key").value.trim();
    if (key) sessionStorage.setItem("appa-key", key);
    else sessionStorage.removeItem("appa-key");
    byId("key").value = "";
    form.hidden = true;
    then();
  });
}
