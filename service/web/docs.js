// The API, shown by Swagger UI from the document of this gateway, with the key of this session.

import { apiUrl, byId, getJson, keyForm } from "./api.js";

const DOCUMENT = new URLSearchParams(location.search).has("data") ? "v1/data/openapi.json" : "openapi.json";

function withKey(request) {
  const key = sessionStorage.getItem("appa-key");
  const named = Object.keys(request.headers).some((name) => /^(authorization|x-api-key)$/i.test(name));
  if (key && !named) request.headers.Authorization = `Bearer ${key}`;
  return request;
}

async function show() {
  byId("message").textContent = "";
  const spec = await getJson(apiUrl(DOCUMENT));
  SwaggerUIBundle({
    spec,
    domNode: byId("api"),
    deepLinking: true,
    docExpansion: "list",
    requestInterceptor: withKey,
    validatorUrl: null, // no request to the public validator
  });
}

const tell = (error) => { byId("message").textContent = error.message; };
keyForm(() => show().catch(tell));
show().catch(tell);
