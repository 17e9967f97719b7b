"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const plan = JSON.parse($("plan").textContent);
  // To about three digits, as the command prints it. A share near 1 keeps two digits of what it lacks of 1.
  function number(value, name) {
    if (value === null) return name.endsWith("_per_case") ? "none found" : "none";
    if (value >= 100) return value.toFixed(0);
    if (value >= 0.99 && value < 1 - 1e-6) return String(Number(value.toFixed(1 - Math.floor(Math.log10(1 - value)))));
    return String(Number(value.toPrecision(3)));
  }
  function make(tag, text) {
    const out = document.createElement(tag);
    if (text !== undefined) out.textContent = text;
    return out;
  }
  function show() {
    const at = Number($("at").value);
    const group = plan.groups[$("group").value];
    $("score").textContent = `score ${at}${at === Math.round(plan.chosen) ? " (chosen)" : ""}`;
    const table = make("table");
    table.className = "figures";
    table.append(make("caption", `${group.films[0]} films with the disease, ${group.films[1]} without`));
    for (const [name, words] of Object.entries(plan.names)) {
      const [value, low, high] = group.figures[name][at];
      const row = make("tr");
      const head = make("th", words);
      head.scope = "row";
      row.append(head, make("td", number(value, name)), make("td", `${number(low, name)} to ${number(high, name)}`));
      table.append(row);
    }
    $("figures").replaceChildren(table);
  }
  $("at").value = Math.round(plan.chosen);
  $("at").addEventListener("input", show);
  $("group").addEventListener("change", show);
  show();
})();
