// The page: hands films in, asks how far they are, shows them. Text from outside only ever becomes text.
"use strict";

const $ = (id) => document.getElementById(id);
const STATES = { waiting: "waiting", running: "running" };
let texts = {}; // of the page's language; English where there is none
let reasons = {}; // what a reason or warning says in short, by its code; empty in English
let failures = []; // the same of an error without a code: pairs of a pattern and what to say
const t = (english, values = {}) =>
  Object.entries(values).reduce((text, [name, value]) => text.replaceAll(`{${name}}`, value), texts[english] || english);
let key = sessionStorage.getItem("cxr-key") || "";
let limits = null;
let job = null;
let shown = ""; // id of the film in the detail
let drawn = ""; // job and film whose pictures are on the stage
let urls = [];
const view = { zoom: 1, x: 0, y: 0 };

class Refused extends Error {}

function headers() {
  return key ? { "X-API-Key": key } : {};
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers() });
  } catch {
    throw new Refused(t("The server does not answer. Is it still running?"));
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    const error = new Refused(said.message || `The server answered ${answer.status}.`);
    error.status = answer.status;
    throw error;
  }
  return answer;
}

function say(text) {
  if ($("said").textContent !== text) $("said").textContent = text;
}

function fault(error) {
  $("fault").textContent = error ? error.message : "";
}

async function start() {
  try {
    limits = await (await ask("v1/limits")).json();
  } catch (error) {
    if (error.status === 401) {
      $("key-form").hidden = false;
      $("work").hidden = true;
      if (key) $("key-error").textContent = error.message;
      $("key").focus();
    } else {
      $("work").hidden = false;
      fault(error);
    }
    return;
  }
  $("key-form").hidden = true;
  $("work").hidden = false;
  await arrive();
  $("drop-help").textContent =
    t("{formats}; up to {n} films of {mb} MB and {mp} megapixels.", {
      formats: limits.formats,
      n: limits.max_files,
      mb: limits.max_upload_mb,
      mp: limits.max_megapixels,
    }) + (limits.unchecked ? ` ${limits.unchecked}.` : "");
  $("version").textContent = `${t("version")} ${limits.version}`;
  $("kept").textContent = limits.kept
    ? t("results are kept by who runs this server")
    : t("nothing is kept: films and results are deleted after {n} min without use", { n: limits.forget_after_minutes });
}

function refusal(files) {
  const size = files.reduce((sum, file) => sum + file.size, 0);
  const large = files.find((file) => file.size > limits.max_upload_mb * 1e6);
  if (large) return `${large.name} has ${(large.size / 1e6).toFixed(0)} MB; ${limits.max_upload_mb} MB are allowed.`;
  if (files.length > limits.max_files) return `${files.length} films; ${limits.max_files} are allowed at once.`;
  if (size > limits.max_job_mb * 1e6) return `${(size / 1e6).toFixed(0)} MB; ${limits.max_job_mb} MB are allowed at once.`;
  return "";
}

function upload(files) {
  const body = new FormData();
  for (const file of files) body.append("file", file, file.name);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch tells nothing of an upload's progress
    request.open("POST", "v1/jobs");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) $("bar").value = (50 * event.loaded) / event.total;
    };
    request.onerror = () => reject(new Refused("The upload broke off. Is the server still running?"));
    request.onload = () => {
      let said = {};
      try {
        said = JSON.parse(request.responseText);
      } catch {
        said = { message: `The server answered ${request.status}.` };
      }
      if (request.status === 202) resolve(said);
      else reject(new Refused(said.message));
    };
    request.send(body);
  });
}

async function hand(files) {
  if (!limits || !files.length || $("files").disabled) return;
  fault(null);
  const no = refusal(files);
  if (no) return fault(new Refused(no));
  $("files").disabled = true;
  $("progress").hidden = false;
  $("bar").value = 0;
  say(t("Sending films: {n}", { n: files.length }));
  try {
    const sent = await upload(files);
    leave(); // the server holds the former job for a while: the back button leads to it
    job = sent;
    remember(true);
    await follow();
  } catch (error) {
    fault(error);
    say("");
  } finally {
    $("files").disabled = false;
    $("files").value = "";
    $("progress").hidden = true;
  }
}

async function follow() {
  let pause = 250;
  const mine = job.id;
  for (;;) {
    render();
    if (job.status === "done") return;
    await new Promise((resolve) => setTimeout(resolve, pause));
    if (!job || job.id !== mine) return; // another job was opened meanwhile
    pause = Math.min(2000, pause * 1.2);
    const now = await (await ask(`v1/jobs/${mine}`)).json();
    if (!job || job.id !== mine) return;
    job = now;
  }
}

// The job and the film stand in the address, behind the #: a reload and the back button find them again.
function remember(push) {
  const now = job ? `#job=${job.id}${shown ? `&film=${shown}` : ""}` : "";
  if (now === location.hash) return;
  history[push ? "pushState" : "replaceState"](null, "", now || location.pathname);
}
async function arrive() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const [id, film] = [asked.get("job"), asked.get("film")];
  if (!id || !/^[0-9a-f]{32}$/.test(id)) {
    if (job) leave();
    return;
  }
  fault(null);
  if (!job || job.id !== id) {
    leave();
    try {
      job = await (await ask(`v1/jobs/${id}`)).json();
    } catch (error) {
      if (error.status !== 404) throw error;
      history.replaceState(null, "", location.pathname);
      return fault(new Refused(t("These films were deleted from the server. Hand them in again.")));
    }
  }
  if (film && job.films.some((one) => one.id === film)) shown = film;
  follow().catch(fault);
}
function leave() {
  job = null;
  shown = drawn = "";
  say("");
  $("first").textContent = "";
  $("list").replaceChildren();
  $("result").hidden = $("detail").hidden = true;
  $("film").removeAttribute("src");
  for (const url of urls.splice(0)) URL.revokeObjectURL(url);
}

// The score, under the name that it has for these weights; null without one.
function scoreOf(result) {
  return result.tb_score ?? result.score ?? null;
}

// A film's answer: one class, or of several labels all that were found, the likeliest first.
function labels(result) {
  const found = (result.label || "").split("|").filter(Boolean);
  return found.sort((a, b) => result[`p_${b}`] - result[`p_${a}`]);
}

function words(film) {
  const result = film.result;
  if (!result) return t(STATES[film.state]);
  if (result.status !== "ok") return t(result.status);
  const answer = labels(result);
  if (scoreOf(result) !== null) return `${result.screen ? t(result.screen) : answer.join(", ")} ${scoreOf(result).toFixed(1)}`;
  return answer.length > 1 ? `${answer[0]} +${answer.length - 1}` : answer[0] || t("none");
}

function render() {
  const { done, total, counts, status } = job;
  $("bar").value = 50 + (50 * done) / total;
  const bad = [counts.refused && `${counts.refused} ${t("refused")}`, counts.failed && `${counts.failed} ${t("failed")}`].filter(Boolean);
  const end = bad.length ? t("{n} done, of them {bad}", { n: total, bad: bad.join(", ") }) : t("{n} done", { n: total });
  say(status === "done" ? end : t("{n} of {m} done", { n: done, m: total }));
  $("first").textContent = status === "done" ? first() : "";
  $("result").hidden = false;
  $("zip").disabled = $("discard").disabled = status !== "done";
  $("forget").textContent =
    status === "done" && !limits.kept ? t("Deleted after {n} min without use.", { n: limits.forget_after_minutes }) : "";
  if (status === "done") inOrder();
  for (const [place, film] of job.films.entries()) {
    let button = $("list").children[place]?.firstChild;
    if (!button) {
      button = element("button", "");
      button.type = "button";
      button.append(element("span", film.name, "name"), element("span", "", "state"));
      button.addEventListener("click", () => show(button.dataset.film, true));
      const item = element("li", "");
      item.append(button);
      $("list").append(item);
    }
    button.dataset.film = film.id;
    button.firstChild.textContent = film.name;
    const state = button.lastChild;
    state.textContent = words(film);
    state.classList.toggle("bad", Boolean(film.result) && film.result.status !== "ok");
    button.setAttribute("aria-current", String(film.id === shown));
  }
  if (!shown) {
    const first = job.films.find((film) => film.result);
    if (first) show(first.id, false);
  } else {
    show(shown, false);
  }
}

// What to read first: positive, unsure, what nobody judged, negative; within each the highest score.
function inOrder() {
  const rank = (film) => {
    const result = film.result || {};
    const at = ["positive", "unsure"].indexOf(result.screen);
    if (at >= 0) return at;
    return result.status === "ok" ? (result.screen ? 3 : 0) : 2;
  };
  const score = (film) => (film.result && typeof scoreOf(film.result) === "number" ? scoreOf(film.result) : -1);
  job.films.sort((a, b) => rank(a) - rank(b) || score(b) - score(a) || (a.id < b.id ? -1 : 1));
}
function first() {
  const count = (screen) => job.films.filter((film) => film.result && film.result.screen === screen).length;
  const [positive, unsure, negative] = ["positive", "unsure", "negative"].map(count);
  if (!positive && !unsure && !negative) return "";
  const said = `${t("{n} screen positive", { n: positive })}, ${unsure} ${t("unsure")}, ${negative} ${t("negative")}.`;
  const read = positive + unsure;
  return read ? `${said} ${read > 1 ? t("Read these {n} first.", { n: read }) : t("Read this one first.")}` : said;
}

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function show(id, move) {
  const film = job.films.find((one) => one.id === id);
  const other = shown !== id;
  shown = id;
  if (other) look();
  remember(move && other);
  for (const [place, item] of [...$("list").children].entries()) {
    item.firstChild.setAttribute("aria-current", String(job.films[place].id === id));
  }
  const result = film.result;
  $("detail").hidden = false;
  $("film-name").textContent = film.name;
  const english = (result && (result.error || result.warnings)) || "";
  const said = result ? (result.error ? failed(english) : short(english)) : t(STATES[film.state]);
  $("film-said").textContent = said;
  if (result && said !== english) $("film-said").append(original(english));
  $("film-said").className = result && result.error ? "fault" : "small";
  facts(film);
  if (move && matchMedia("(max-width: 52rem)").matches) $("detail").scrollIntoView();
  pictures(film).catch(fault);
}

// Reasons and warnings in the page's language where they have a code, each once.
function reason(text) {
  const code = Object.keys(reasons).find((name) => text.startsWith(`${name}: `));
  return code ? `${code}: ${reasons[code]}` : t(text);
}
const short = (joined) => [...new Set(joined.split("; ").map(reason))].join("; ");
// Why a film was refused or failed. Its sentence may hold a semicolon, so it stays whole.
function failed(error) {
  const said = reason(error);
  const found = said === error && failures.find(([pattern]) => new RegExp(pattern).test(error));
  return found ? found[1] : said;
}
function original(text) {
  const out = element("span", text, "original"); // what was measured, and what a search finds
  out.lang = "en";
  return out;
}

function facts(film) {
  const result = film.result || {};
  const classes = limits.classes.filter((name) => typeof result[`p_${name}`] === "number");
  $("score-part").hidden = typeof scoreOf(result) !== "number";
  if (!$("score-part").hidden) {
    $("score-title").textContent = t("{name} score", { name: limits.positive || (limits.classes.includes("TB") ? "TB" : "") });
    $("score").textContent = scoreOf(result).toFixed(1);
    const likeliest = t("likeliest {label}", { label: result.label });
    $("verdict").textContent = result.screen ? `${t("screen {screen}", { screen: t(result.screen) })}; ${likeliest}` : likeliest;
    for (const [name, value] of [["at", scoreOf(result)], ["cut", limits.cutoff === null ? 50 : limits.cutoff]]) {
      for (const end of ["x1", "x2"]) $(name).setAttribute(end, value);
    }
    $("cut").style.display = limits.cutoff === null ? "none" : "";
    $("scale-said").textContent = limits.cutoff === null ? "" : t("0 to 100; the threshold is {cutoff}. It is no percentage.", { cutoff: limits.cutoff });
  }
  $("bars-part").hidden = !classes.length;
  $("bars").replaceChildren(
    ...classes.flatMap((name) => {
      const value = result[`p_${name}`];
      const bar = element("dd", "", "bar");
      const fill = element("span");
      fill.style.width = `${100 * value}%`;
      bar.setAttribute("aria-hidden", "true");
      bar.append(fill);
      return [element("dt", name), bar, element("dd", `${(100 * value).toFixed(1)} %`)];
    })
  );
  $("regions-part").hidden = !result.boxes;
  const said = (result.boxes || []).map((box) => `${box.category}: ${place(box)}, ${t("score")} ${box.score.toFixed(2)}`);
  $("regions").replaceChildren(...(said.length ? said : result.boxes ? [t("none")] : []).map((text) => element("li", text)));
  const rows = [];
  if (result.status === "ok" && typeof scoreOf(result) !== "number" && classes.length)
    rows.push([t("Answer"), labels(result).join(", ") || t("none of the labels")]);
  if (result.width) rows.push([t("size"), `${result.width} x ${result.height} px`]);
  if (typeof result.lung_fraction === "number") rows.push([t("lungs"), t("{share} % of the film", { share: (100 * result.lung_fraction).toFixed(0) })]);
  $("facts").replaceChildren(...rows.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
}

function place(box) {
  return t("patient's {side} lung, {zone} zone", { side: t(box.side), zone: t(box.zone) });
}

async function pictures(film) {
  const wanted = `${job.id}/${film.id}/${film.pictures.length}`;
  if (wanted === drawn) return;
  drawn = wanted;
  const has = film.pictures.includes("film.png");
  $("stage").hidden = $("controls").hidden = !has;
  if (!has) return;
  const made = []; // let go of together, once nothing shows or loads them any more
  const load = (name) => (film.pictures.includes(name) ? picture(film, name, made) : null);
  const [pixels, mask, heat] = await Promise.all(["film.png", "mask.png", "heatmap.png"].map(load));
  if (wanted !== drawn) return made.forEach((url) => URL.revokeObjectURL(url)); // another film was chosen meanwhile
  $("film").src = pixels.src;
  const before = urls.splice(0, urls.length, ...made);
  await $("film").decode().catch(() => null);
  for (const url of before) URL.revokeObjectURL(url);
  if (wanted !== drawn) return;
  const regions = (film.result.boxes || []).map((box) => `${box.category}, ${place(box)}`);
  $("stage").setAttribute(
    "aria-label",
    `${t("Chest X-ray")} ${film.name}: ` + (regions.length ? regions.join("; ") : t("no regions to look at"))
  );
  paint($("heat"), heat, pixels, colour);
  paint($("outline"), mask, pixels, edge);
  boxes(film.result);
  settings();
}

async function picture(film, name, made) {
  const data = await (await ask(`v1/jobs/${job.id}/films/${film.id}/${name}`)).blob();
  const image = new Image();
  const url = URL.createObjectURL(data);
  made.push(url);
  image.src = url;
  await image.decode();
  return image;
}

function paint(canvas, image, film, change) {
  const most = Math.min(1, 1024 / Math.max(film.naturalWidth, film.naturalHeight));
  canvas.width = Math.round(film.naturalWidth * most);
  canvas.height = Math.round(film.naturalHeight * most);
  if (!image) return;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const data = context.getImageData(0, 0, canvas.width, canvas.height);
  change(data);
  context.putImageData(data, 0, 0);
}

// Google's Turbo colours by the polynomials of its authors; heat below 0.15 is not drawn, as in overlay.png.
function colour({ data }) {
  const table = new Uint8ClampedArray(4 * 256);
  const red = [0.1357, 4.6154, -42.6603, 132.1311, -152.9424, 59.2864];
  const green = [0.0914, 2.1942, 4.8430, -14.1850, 4.2773, 2.8296];
  const blue = [0.1067, 12.6419, -60.5820, 110.3628, -89.9031, 27.3482];
  const at = (terms, x) => 255 * terms.reduceRight((sum, term) => sum * x + term, 0);
  for (let level = 0; level < 256; level++) {
    const x = level / 255;
    table.set([at(red, x), at(green, x), at(blue, x), 255 * Math.max(0, (x - 0.15) / 0.85)], 4 * level);
  }
  for (let i = 0; i < data.length; i += 4) data.set(table.subarray(4 * data[i], 4 * data[i] + 4), i);
}

function edge({ data, width, height }) {
  const inside = new Uint8Array(width * height);
  for (let i = 0; i < inside.length; i++) inside[i] = data[4 * i] > 127 ? 1 : 0;
  data.fill(0);
  for (let y = 1; y < height - 1; y++) {
    for (let x = 1; x < width - 1; x++) {
      const i = y * width + x;
      if (inside[i] && !(inside[i - 1] && inside[i + 1] && inside[i - width] && inside[i + width])) {
        for (const j of [i, i - 1, i - width]) data.set([60, 200, 220, 255], 4 * j);
      }
    }
  }
}

function boxes(result) {
  const svg = $("boxes");
  svg.setAttribute("viewBox", `0 0 ${result.width} ${result.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.replaceChildren(
    ...(result.boxes || []).flatMap(({ bbox: [x, y, width, height] }, number) => {
      const size = result.width / 26;
      const made = [["rect", { x, y, width, height }], ["text", { x: x + size / 4, y: y + size, "font-size": size, "stroke-width": size / 8 }]];
      return made.map(([tag, attributes]) => {
        const one = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [name, value] of Object.entries(attributes)) one.setAttribute(name, value);
        if (tag === "text") one.textContent = String(number + 1);
        return one;
      });
    })
  );
}

function settings() {
  $("heat").style.opacity = $("opacity").value / 100;
  $("opacity-said").textContent = `${$("opacity").value} %`;
  $("boxes").style.visibility = $("show-boxes").checked ? "visible" : "hidden";
  $("outline").style.visibility = $("show-outline").checked ? "visible" : "hidden";
  $("film").style.filter = `${$("invert").checked ? "invert(1) " : ""}brightness(${$("bright").value}) contrast(${$("contrast").value})`;
}

function look() {
  for (const [id, value] of [["bright", 1], ["contrast", 1], ["zoom", 1]]) $(id).value = value;
  $("invert").checked = false;
  Object.assign(view, { zoom: 1, x: 0, y: 0 });
  lay();
  settings();
}
function lay() {
  const box = $("stage").getBoundingClientRect();
  for (const [axis, size] of [["x", box.width], ["y", box.height]]) {
    view[axis] = Math.min(0, Math.max(size * (1 - view.zoom), view[axis]));
  }
  $("sheet").style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
  $("stage").classList.toggle("near", view.zoom > 1);
  $("zoom").value = view.zoom;
}
function zoom(to, x, y) {
  const box = $("stage").getBoundingClientRect();
  const [px, py] = [x === undefined ? box.width / 2 : x - box.left, y === undefined ? box.height / 2 : y - box.top];
  const next = Math.min(6, Math.max(1, to));
  view.x = px - ((px - view.x) * next) / view.zoom;
  view.y = py - ((py - view.y) * next) / view.zoom;
  view.zoom = next;
  lay();
}

async function zip() {
  const data = await (await ask(`v1/jobs/${job.id}/results.zip`)).blob();
  const link = element("a");
  link.href = URL.createObjectURL(data);
  link.download = `results-${job.id.slice(0, 8)}.zip`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(t("{name} downloaded", { name: link.download }));
}

async function forget() {
  const gone = job;
  leave();
  remember(false);
  await ask(`v1/jobs/${gone.id}`, { method: "DELETE" }).catch((error) => {
    if (error.status !== 404) throw error;
  });
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  sessionStorage.setItem("cxr-key", key);
  $("key-error").textContent = "";
  start();
});
$("files").addEventListener("change", () => hand([...$("files").files]));
$("zip").addEventListener("click", () => zip().catch(fault));
$("discard").addEventListener("click", () =>
  forget().then(() => {
    say(t("Deleted from the server"));
    $("files").focus();
  }, fault)
);
for (const id of ["opacity", "show-boxes", "show-outline", "bright", "contrast", "invert"]) $(id).addEventListener("input", settings);
$("zoom").addEventListener("input", () => zoom(Number($("zoom").value)));
$("reset").addEventListener("click", look);
$("stage").addEventListener("wheel", (event) => {
  if (!event.ctrlKey && view.zoom === 1) return; // the page scrolls
  event.preventDefault();
  zoom(view.zoom * Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
}, { passive: false });
$("stage").addEventListener("pointerdown", (event) => {
  if (view.zoom === 1) return;
  event.preventDefault();
  $("stage").setPointerCapture(event.pointerId);
  let [x, y] = [event.clientX, event.clientY];
  const drag = (now) => {
    view.x += now.clientX - x;
    view.y += now.clientY - y;
    [x, y] = [now.clientX, now.clientY];
    lay();
  };
  $("stage").addEventListener("pointermove", drag);
  const end = () => $("stage").removeEventListener("pointermove", drag);
  for (const kind of ["pointerup", "pointercancel"]) $("stage").addEventListener(kind, end, { once: true });
});
window.addEventListener("popstate", () => limits && arrive().catch(fault));
$("list").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const next = step && event.target.closest("li")?.[step > 0 ? "nextElementSibling" : "previousElementSibling"];
  if (!next) return;
  event.preventDefault();
  next.firstChild.focus();
  next.firstChild.click();
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  hand([...event.dataTransfer.files]);
});
async function begin() {
  const said = await fetch("pages/texts.json").then((answer) => answer.json()).catch(() => ({ language: "en", texts: {}, reasons: {}, failures: [] }));
  texts = said.texts;
  reasons = said.reasons;
  failures = said.failures;
  document.documentElement.lang = said.language;
  for (const one of document.querySelectorAll("[data-t]")) one.textContent = t(one.textContent);
  await start();
}
begin();
