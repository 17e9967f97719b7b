"use strict";

const $ = (id) => document.getElementById(id);
const EVERY = 3000; // ms
let key = sessionStorage.getItem("cxr-key") || "";

function rows(body, lines) {
  $(body).replaceChildren(...lines.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text === null || text === undefined ? "" : String(text);
      return cell;
    }));
    return row;
  }));
}

function show(state) {
  $("work").hidden = false;
  $("title").textContent = state.title;
  $("fault").textContent = state.problem ? `${state.problem}. Films wait until there is room.` : "";
  rows("figures", [
    ["films that wait or are in work", state.waiting],
    ["callers connected", state.callers],
    ...Object.entries(state.received).map(([name, count]) => [`received: ${name}`, count]),
    ...Object.entries(state.judged).map(([name, count]) => [`judged: ${name}`, count]),
  ]);
  rows("destinations", state.destinations.map((one) => [
    one.name, one.waiting, one.sent, one.refused,
    (one.problem ? `${one.problem}; next try in ${one.again_in} s` : "ok")
      + (one.outdated ? `; holds answers to ${one.outdated} films that were refused since: delete them there, see outdated.csv` : ""),
  ]));
  rows("films", state.films.map((one) => [one.time, one.id, one.status, one.label, one.screen, one.tb_score]));
}

async function look() {
  try {
    const answer = await fetch("v1/queue", { headers: key ? { "X-API-Key": key } : {} });
    $("key-form").hidden = answer.status !== 401;
    if (answer.ok) show(await answer.json());
    else $("fault").textContent = (await answer.json()).message || "";
  } catch {
    $("fault").textContent = "The node does not answer.";
  }
  setTimeout(look, EVERY);
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("cxr-key", key);
});

look();
