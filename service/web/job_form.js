// A form for each kind of job, made from the schema that the API itself publishes.

import { apiUrl, byId, element, getJson, send } from "./api.js";

const words = (name) => name.replaceAll("_", " ");
let schemas = {}, kinds = {};

const resolved = (schema) => {
  const { $ref, ...own } = schema;
  const found = $ref ? { ...schemas[$ref.split("/").at(-1)], ...own } : schema;
  const real = found.anyOf?.find((one) => one.type !== "null");
  return real ? { ...resolved(real), ...found, anyOf: undefined } : found;
};

// An input element and a reader of its value: undefined if the user leaves the default.
function control(schema) {
  if (schema.enum) {
    const select = element("select");
    select.append(...schema.enum.map((value) => element("option", value)));
    select.value = schema.default ?? schema.enum[0];
    return [select, () => (select.value === schema.default ? undefined : select.value)];
  }
  const input = element("input");
  if (schema.type === "boolean") {
    input.type = "checkbox";
    input.checked = schema.default === true;
    return [input, () => (input.checked === (schema.default === true) ? undefined : input.checked)];
  }
  if (schema.type === "integer" || schema.type === "number") {
    Object.assign(input, { type: "number", min: schema.minimum ?? "", max: schema.maximum ?? "", step: schema.type === "integer" ? 1 : "any" });
    input.placeholder = schema.default ?? "";
    return [input, () => (input.value === "" ? undefined : Number(input.value))];
  }
  input.placeholder = schema.type === "array" ? (schema.default ?? []).join(", ") : schema.format === "date-time" ? "2025-01-01T06:00Z" : schema.default ?? "";
  if (schema.maxLength) input.maxLength = schema.maxLength;
  const read = () => input.value.trim() || undefined;
  return [input, schema.type === "array" ? () => read()?.split(",").map((part) => part.trim()).filter(Boolean) : read];
}

// Rows of the form, required fields first, and a reader of the whole object.
function fields(schema, prefix) {
  const readers = [], required = [], others = [];
  for (const [name, given] of Object.entries(schema.properties)) {
    if (name === "kind") continue;
    const property = resolved(given), id = `${prefix}-${name}`, needed = schema.required?.includes(name);
    if (property.properties) {
      const inner = fields(property, id), set = element("fieldset");
      set.append(element("legend", words(name)), ...inner.required, ...inner.others);
      others.push(set);
      readers.push([name, () => (Object.keys(inner.read()).length ? inner.read() : undefined)]);
      continue;
    }
    const [input, read] = control(property), row = element("p"), label = element("label", words(name)), note = element("small", property.description);
    Object.assign(input, { id, required: Boolean(needed) });
    Object.assign(label, { htmlFor: id });
    note.id = `${id}-note`;
    input.setAttribute("aria-describedby", note.id);
    row.append(label, " ", input, " ", note);
    (needed ? required : others).push(row);
    readers.push([name, read]);
  }
  const read = () => Object.fromEntries(readers.map(([name, one]) => [name, one()]).filter(([, value]) => value !== undefined));
  return { required, others, read };
}

let reader = () => ({});
export const jobCall = () => ({ url: apiUrl("v1/jobs"), method: "POST", body: spec() });
const spec = () => ({ kind: byId("job-kind").value, ...reader() });

function choose() {
  const { required, others, read } = fields(kinds[byId("job-kind").value], "job");
  const more = element("details");
  more.append(element("summary", "everything else"), ...others);
  byId("job-fields").replaceChildren(...required, more);
  reader = read;
}

// `changed` is called when a value changes, `then` after a job was queued.
export async function jobForm(changed, then) {
  const { components, paths } = await getJson(apiUrl("openapi.json"));
  schemas = components.schemas;
  const { mapping } = paths["/v1/jobs"].post.requestBody.content["application/json"].schema.discriminator;
  kinds = Object.fromEntries(Object.entries(mapping).map(([kind, $ref]) => [kind, resolved({ $ref })]));
  byId("job-kind").replaceChildren(...Object.keys(kinds).map((kind) => element("option", kind)));
  choose();
  byId("job-kind").addEventListener("change", choose);
  byId("job-form").addEventListener("input", changed);
  byId("job-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const said = byId("job-said");
    try {
      const job = await send("POST", apiUrl("v1/jobs"), spec());
      said.className = "good";
      said.textContent = `${job.id} is ${job.state}`;
      await then();
    } catch (error) {
      said.className = "bad";
      said.textContent = error.message;
    }
  });
}
