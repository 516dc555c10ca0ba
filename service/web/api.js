// What every page asks the gateway with: the key of this session, errors, elements of text only.

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
  const problem = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(problem.detail ?? answer.statusText), { answer, problem });
}

export const get = (url) => ask(url);

// A change asked for once: the same request sent again by the network changes nothing more.
export async function send(method, url, body) {
  const once = Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("-");
  const headers = { "Idempotency-Key": once, ...(body === undefined ? {} : { "Content-Type": "application/json" }) };
  return (await ask(url, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) })).json();
}

export const getJson = async (url) => (await get(url)).json();

// The same call by hand; the key is left out. A binary answer goes to a file.
export function callText(url, { method = "GET", body, binary = false } = {}) {
  const said = body === undefined ? "" : JSON.stringify(body);
  const curl = [`curl '${url}'`, "-H 'Authorization: Bearer YOUR_KEY'", method !== "GET" && `-X ${method}`,
    said && `-H 'Content-Type: application/json' -d '${said.replaceAll("'", "'\\''")}'`, binary && "-o answer.bin"];
  const python = [`"${method}", "${url}"`, 'headers={"Authorization": "Bearer YOUR_KEY"}', said && `content=${JSON.stringify(said)}`];
  return `${curl.filter(Boolean).join(" ")}\n\nimport httpx\nanswer = httpx.request(${python.filter(Boolean).join(", ")})`;
}

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

export function shape(name, values, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(values)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

export function keyForm(then) {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("appa-key", byId("key").value.trim());
    byId("key-form").hidden = true;
    then();
  });
}
