// The OpenAPI document for reading: no library, nothing from another host.
"use strict";

function element(name, text, ...inside) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...inside);
  return made;
}

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.anyOf) return schema.anyOf.map(kind).join(" | ");
  if (schema.type === "array") return schema.prefixItems ? `[${schema.prefixItems.map(kind).join(", ")}]` : `${kind(schema.items)}[]`;
  return schema.format ? `${schema.type} (${schema.format})` : schema.type || "any";
}

function table(rows) {
  const body = rows.map(([name, type, text]) =>
    element("tr", "", element("td", "", element("code", name)), element("td", type), element("td", text || ""))
  );
  return element("table", "", element("tbody", "", ...body));
}

function content(answer) {
  return Object.entries(answer.content || {})
    .map(([type, { schema }]) => (type === "application/json" ? kind(schema) : type))
    .join(", ");
}

async function start() {
  const api = await (await fetch("openapi.json")).json();
  document.getElementById("about").textContent = `${api.info.summary} ${api.info.description}`;
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, one] of Object.entries(methods)) {
      const section = element("section", "", element("h2", `${method.toUpperCase()} ${path}`));
      section.append(element("p", one.description || one.summary));
      const given = (one.parameters || []).map((p) => [p.name, `${kind(p.schema)} in ${p.in}`, p.description]);
      for (const { schema } of Object.values(one.requestBody?.content || {})) {
        for (const [name, field] of Object.entries(schema.properties)) {
          given.push([name, `${kind(field)} in the form`, (field.items || field).description]);
        }
      }
      if (given.length) section.append(element("h3", "Takes"), table(given));
      const answers = Object.entries(one.responses).map(([code, a]) => [code, content(a), a.description]);
      section.append(element("h3", "Answers"), table(answers));
      document.getElementById("routes").append(section);
    }
  }
  for (const [name, model] of Object.entries(api.components.schemas)) {
    const rows = Object.entries(model.properties || {}).map(([field, s]) => [field, kind(s), s.description]);
    if (rows.length) document.getElementById("models").append(element("h3", name), table(rows));
  }
}

start();
