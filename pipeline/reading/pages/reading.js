// The reading page: one film after the other, one key for each answer. Text from outside only ever becomes text.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
if (location.hash.length > 1) {
  sessionStorage.setItem("cxr-read-key", location.hash.slice(1));
  history.replaceState(null, "", location.pathname); // the key stays out of what is bookmarked or shown to others
}
const key = sessionStorage.getItem("cxr-read-key") || "";
let reading = null; // who reads, and how far it is
let film = null; // the film on the stage
let levels = null; // its grey levels, 16 bit
let heat = null;
let begun = 0;
let loading = 0;
const view = { level: 0, width: 1, zoom: 1, x: 0, y: 0 };

const t = (english, values = {}) =>
  Object.entries(values).reduce((text, [name, value]) => text.replaceAll(`{${name}}`, value), (reading && reading.texts[english]) || english);

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { "X-API-Key": key, ...options.headers } });
  } catch {
    throw new Error(t("The server does not answer. Is it still running?"));
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.message || `${answer.status}`);
  }
  return answer;
}
const post = (path, body) => ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const fault = (error) => ($("fault").textContent = error ? error.message : "");

function make(tag, attributes, ...children) {
  const out = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) out.setAttribute(name, value);
  out.append(...children);
  return out;
}

async function start() {
  reading = await (await ask("v1/reading")).json();
  document.documentElement.lang = reading.language;
  for (const one of document.querySelectorAll("[data-t]")) one.textContent = t(one.textContent);
  for (const one of document.querySelectorAll("[data-t-label]")) one.setAttribute("aria-label", t(one.getAttribute("aria-label")));
  $("who").textContent = reading.blind ? `${reading.reader} (${t("blind")})` : reading.reader;
  $("heat-part").hidden = $("boxes-part").hidden = reading.blind;
  $("answers").replaceChildren(
    ...reading.answers.map((one) => {
      const words = { bad: t("technically bad"), unsure: t("unsure"), other: t("other disease"), normal: t("normal") };
      const button = make("button", { type: "button", "data-value": one.value, "aria-keyshortcuts": one.key });
      button.append(make("span", {}, words[one.text] || t(one.text)), make("kbd", {}, one.key.toUpperCase()));
      button.addEventListener("click", () => answer(one.value));
      return button;
    })
  );
  const number = reading.next || beside(reading.films + 1, -1);
  if (number) await show(number);
  else fault(new Error(skipped())); // none can be shown
}

// The nearest film before (-1) or after (1) that can be shown and is open to the reader; null where there is none.
function beside(number, by) {
  const most = Math.min(reading.films, reading.next || reading.films);
  for (let to = number + by; to >= 1 && to <= reading.films; to += by) {
    if (to <= most && !reading.skipped.includes(to)) return to;
  }
  return null;
}
const skipped = () => t("Films skipped, as they cannot be shown: {n}.", { n: reading.skipped.length });

function progress() {
  $("bar").max = reading.films;
  $("bar").value = reading.done;
  const end = reading.next === null ? ` ${t("All films are read. Write the labels, or go back to change an answer.")}` : "";
  $("said").textContent = t("Film {n} of {m}; {done} read.", { n: film.number, m: reading.films, done: reading.done }) + end + (reading.skipped.length ? ` ${skipped()}` : "");
  for (const button of $("answers").children) {
    button.setAttribute("aria-pressed", String(reading.answered[film.number - 1] === button.dataset.value));
  }
  $("before").disabled = !beside(film.number, -1);
  $("after").disabled = !beside(film.number, 1);
}

async function show(number) {
  const mine = ++loading;
  fault(null);
  let facts, bytes;
  try {
    [facts, bytes] = await Promise.all([
      ask(`v1/films/${number}`).then((answer) => answer.json()),
      ask(`v1/films/${number}/levels`).then((answer) => answer.arrayBuffer()),
    ]);
  } catch (error) {
    if (mine === loading) await skip(number, error);
    return;
  }
  const picture = facts.heat ? await load(number) : null;
  if (mine !== loading) return; // another film was asked for meanwhile
  [film, levels, heat] = [facts, new Uint16Array(bytes), picture];
  begun = performance.now();
  $("film").width = film.width;
  $("film").height = film.height;
  reset();
  colour();
  draw();
  network();
  progress();
}

// A film that is gone, or is another one by now, stays unread: on with the next, and a word of it.
async function skip(number, error) {
  Object.assign(reading, await (await ask("v1/reading")).json());
  if (film) progress();
  if (reading.skipped.includes(number)) {
    const to = reading.next || (film ? null : beside(reading.films + 1, -1));
    if (to && to !== number) await show(to);
  }
  fault(error);
}

async function load(number) {
  const url = URL.createObjectURL(await (await ask(`v1/films/${number}/heat.png`)).blob());
  const image = new Image();
  image.src = url;
  await image.decode();
  URL.revokeObjectURL(url);
  return image;
}

async function answer(value) {
  if (!film || $("answers").dataset.busy) return;
  $("answers").dataset.busy = "1"; // one click, one answer
  try {
    const seconds = (performance.now() - begun) / 1000;
    Object.assign(reading, await (await post(`v1/films/${film.number}/answer`, { answer: value, seconds })).json());
    progress();
    const next = beside(film.number, 1);
    if (next) await show(next);
  } catch (error) {
    fault(error);
  } finally {
    delete $("answers").dataset.busy;
  }
}

// ---- the picture ----
function reset() {
  view.level = (film.low + film.high) / 2;
  view.width = film.high - film.low;
  [view.zoom, view.x, view.y] = [1, 0, 0];
  paint();
  lay();
}
function paint() {
  $("level").value = view.level;
  $("width").value = view.width;
  const table = new Uint8ClampedArray(65536);
  const low = view.level - view.width / 2;
  const invert = $("invert").checked;
  for (let level = 0; level < 65536; level++) {
    const grey = (255 * (level - low)) / view.width;
    table[level] = invert ? 255 - Math.min(255, Math.max(0, grey)) : grey;
  }
  const image = new ImageData(film.width, film.height);
  const words = new Uint32Array(image.data.buffer);
  for (let at = 0; at < levels.length; at++) {
    const grey = table[levels[at]];
    words[at] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
  $("film").getContext("2d").putImageData(image, 0, 0);
}
let painting = false;
function soon() {
  if (painting) return; // at most once for each picture of the screen
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    paint();
  });
}
function fit() {
  const box = $("stage").getBoundingClientRect();
  return Math.min(box.width / film.width, box.height / film.height);
}
function lay() {
  if (!film) return;
  const box = $("stage").getBoundingClientRect();
  const scale = fit() * view.zoom;
  const [width, height] = [film.width * scale, film.height * scale];
  const bound = (at, room, size) => (size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, at)));
  view.x = bound(view.x, box.width, width);
  view.y = bound(view.y, box.height, height);
  const sheet = $("sheet").style;
  [sheet.left, sheet.top, sheet.width, sheet.height] = [view.x, view.y, width, height].map((value) => `${value}px`);
  $("zoom").value = view.zoom;
}
function zoom(to, x, y) {
  const box = $("stage").getBoundingClientRect();
  const [px, py] = [x === undefined ? box.width / 2 : x - box.left, y === undefined ? box.height / 2 : y - box.top];
  const next = Math.min(8, Math.max(1, to));
  view.x = px - ((px - view.x) * next) / view.zoom;
  view.y = py - ((py - view.y) * next) / view.zoom;
  view.zoom = next;
  lay();
}
function draw() {
  const svg = $("drawn");
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${film.native[0]} ${film.native[1]}`);
  const add = (tag, attributes, text) => {
    const one = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
    if (text) one.textContent = text;
    svg.append(one);
  };
  if ($("mask").checked && film.lungs) add("path", { class: "lungs", d: film.lungs });
  const size = film.native[0] / 28;
  if ($("show-boxes").checked) {
    (film.boxes || []).forEach(({ bbox: [x, y, width, height] }, number) => {
      add("rect", { class: "box", x, y, width, height });
      add("text", { x: x + size / 4, y: y + size, "font-size": size, "stroke-width": size / 8 }, String(number + 1));
    });
  }
  $("heat").hidden = !heat || !$("show-heat").checked;
}
function colour() {
  const canvas = $("heat");
  canvas.width = canvas.height = 1;
  if (!heat) return;
  [canvas.width, canvas.height] = [heat.naturalWidth, heat.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(heat, 0, 0);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  const colours = atob(reading.colours);
  for (let at = 0; at < image.data.length; at += 4) {
    const level = image.data[at];
    for (let n = 0; n < 3; n++) image.data[at + n] = colours.charCodeAt(3 * level + n);
    image.data[at + 3] = 130 * Math.max(0, (level / 255 - reading.faint) / (1 - reading.faint));
  }
  context.putImageData(image, 0, 0);
}
function network() {
  $("network").hidden = reading.blind;
  if (reading.blind) return;
  const where = (box) => t("{side} lung, {zone} zone", { side: t(box.side), zone: t(box.zone) });
  const lines = [film.name, `${t("screen {screen}", { screen: t(film.screen || "") })}: ${film.score.toFixed(1)} (${t("threshold")} ${reading.cutoff})`];
  lines.push(...film.boxes.map((box, number) => `${number + 1}: ${box.category}, ${where(box)}`));
  $("network").replaceChildren(...lines.map((text) => make("p", { class: "small" }, text)));
}

// ---- hands ----
const step = (by) => {
  const to = beside(film.number, by);
  if (to) show(to).catch(fault);
};
$("before").addEventListener("click", () => step(-1));
$("after").addEventListener("click", () => step(1));
$("reset").addEventListener("click", reset);
for (const name of ["level", "width"]) {
  $(name).addEventListener("input", () => {
    view[name] = Number($(name).value);
    soon();
  });
}
$("zoom").addEventListener("input", () => zoom(Number($("zoom").value)));
$("invert").addEventListener("change", soon);
for (const id of ["mask", "show-heat", "show-boxes"]) $(id).addEventListener("change", draw);
$("stage").addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(view.zoom * Math.exp(-event.deltaY / 500), event.clientX, event.clientY);
}, { passive: false });
$("stage").addEventListener("pointerdown", (event) => {
  if (!film) return;
  $("stage").setPointerCapture(event.pointerId);
  let [x, y] = [event.clientX, event.clientY];
  const moves = event.shiftKey || event.button === 1;
  const drag = (now) => {
    const [dx, dy] = [now.clientX - x, now.clientY - y];
    [x, y] = [now.clientX, now.clientY];
    if (moves) {
      view.x += dx;
      view.y += dy;
      lay();
    } else {
      view.width = Math.min(65535, Math.max(256, view.width + 60 * dx));
      view.level = Math.min(65535, Math.max(0, view.level + 60 * dy));
      soon();
    }
  };
  $("stage").addEventListener("pointermove", drag);
  const end = () => $("stage").removeEventListener("pointermove", drag);
  for (const kind of ["pointerup", "pointercancel"]) $("stage").addEventListener(kind, end, { once: true });
});
document.addEventListener("keydown", (event) => {
  if (!film || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const pressed = event.key.toLowerCase();
  const found = reading.answers.find((one) => one.key === pressed);
  const toggle = { i: "invert", m: "mask", h: "show-heat", x: "show-boxes" }[pressed];
  if (found) answer(found.value);
  else if (toggle) $(toggle).click();
  else if (pressed === "r") reset();
  else if (pressed === "arrowleft" && event.target.type !== "range") step(-1);
  else if (pressed === "arrowright" && event.target.type !== "range") step(1);
  else return;
  event.preventDefault();
});
window.addEventListener("resize", lay);
$("finish").addEventListener("click", async () => {
  try {
    const { path } = await (await post("v1/labels", {})).json();
    const { said } = await (await ask("v1/agreement")).json();
    const lines = [t("Labels are in {path}", { path }), ...said];
    $("end").replaceChildren(...lines.map((text) => make("p", { class: "small" }, text)));
  } catch (error) {
    fault(error);
  }
});
start().catch(fault);
