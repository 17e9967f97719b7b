"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const plan = JSON.parse($("plan").textContent);
  const number = (value) => (value === null ? "none" : value >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString());
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
      row.append(head, make("td", number(value)), make("td", `${number(low)} to ${number(high)}`));
      table.append(row);
    }
    $("figures").replaceChildren(table);
  }
  $("at").value = Math.round(plan.chosen);
  $("at").addEventListener("input", show);
  $("group").addEventListener("change", show);
  show();
})();
