// The page: hands films in, asks how far they are, shows them. Text from outside only ever becomes text.
"use strict";

const $ = (id) => document.getElementById(id);
const STATES = { waiting: "waiting", running: "reading" };
let key = sessionStorage.getItem("cxr-key") || "";
let limits = null;
let job = null;
let shown = ""; // id of the film in the detail
let drawn = ""; // job and film whose pictures are on the stage
let urls = [];

class Refused extends Error {}

function headers() {
  return key ? { "X-API-Key": key } : {};
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers() });
  } catch {
    throw new Refused("The server does not answer. Is it still running?");
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
  $("drop-help").textContent =
    `${limits.formats}; up to ${limits.max_files} films of ${limits.max_upload_mb} MB and ` +
    `${limits.max_megapixels} megapixels.${limits.unchecked ? ` ${limits.unchecked}.` : ""}`;
  $("version").textContent = `version ${limits.version}`;
  $("kept").textContent = limits.kept
    ? "results are kept by who runs this server"
    : `nothing is kept: films and results are deleted after ${limits.forget_after_minutes} min without use`;
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
  say(`Sending ${files.length} ${files.length === 1 ? "film" : "films"}`);
  try {
    if (job) await forget();
    job = await upload(files);
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
  for (;;) {
    render();
    if (!job || job.status === "done") return;
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2000, pause * 1.2);
    job = await (await ask(`v1/jobs/${job.id}`)).json();
  }
}

// A film's answer: one class, or of several labels all that were found, the likeliest first.
function labels(result) {
  const found = (result.label || "").split("|").filter(Boolean);
  return found.sort((a, b) => result[`p_${b}`] - result[`p_${a}`]);
}

function words(film) {
  const result = film.result;
  if (!result) return STATES[film.state];
  if (result.status !== "ok") return result.status;
  const answer = labels(result);
  if (result.tb_score !== null) return `${answer.join(", ")} ${result.tb_score.toFixed(1)}`;
  return answer.length > 1 ? `${answer[0]} +${answer.length - 1}` : answer[0] || "none found";
}

function render() {
  const { done, total, counts, status } = job;
  $("bar").value = 50 + (50 * done) / total;
  const bad = [counts.refused && `${counts.refused} refused`, counts.failed && `${counts.failed} failed`].filter(Boolean);
  say(status === "done" ? `${total} done${bad.length ? ", of them " + bad.join(", ") : ""}` : `${done} of ${total} done`);
  $("result").hidden = false;
  $("zip").disabled = $("discard").disabled = status !== "done";
  $("forget").textContent =
    status === "done" && !limits.kept ? `Deleted after ${limits.forget_after_minutes} min without use.` : "";
  for (const [place, film] of job.films.entries()) {
    let button = $("list").children[place]?.firstChild;
    if (!button) {
      button = element("button", "");
      button.type = "button";
      button.append(element("span", film.name, "name"), element("span", "", "state"));
      button.addEventListener("click", () => show(film.id, true));
      const item = element("li", "");
      item.append(button);
      $("list").append(item);
    }
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

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function show(id, move) {
  const film = job.films.find((one) => one.id === id);
  shown = id;
  for (const [place, item] of [...$("list").children].entries()) {
    item.firstChild.setAttribute("aria-current", String(job.films[place].id === id));
  }
  const result = film.result;
  $("detail").hidden = false;
  $("film-name").textContent = film.name;
  $("film-said").textContent = !result ? STATES[film.state] : result.error || result.warnings || "";
  $("film-said").className = result && result.error ? "fault" : "small";
  facts(film);
  if (move && matchMedia("(max-width: 52rem)").matches) $("detail").scrollIntoView();
  pictures(film).catch(fault);
}

function facts(film) {
  const result = film.result || {};
  const classes = limits.classes.filter((name) => typeof result[`p_${name}`] === "number");
  $("score-part").hidden = typeof result.tb_score !== "number";
  if (!$("score-part").hidden) {
    $("score-title").textContent = `${limits.classes.includes("TB") ? "TB" : "Positive"} score, predicted ${result.label}`;
    $("score").textContent = result.tb_score.toFixed(1);
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
  const said = (result.boxes || []).map((box) => `${box.category}: ${place(box)}, strength ${box.score.toFixed(2)}`);
  $("regions").replaceChildren(...(said.length ? said : result.boxes ? ["none"] : []).map((text) => element("li", text)));
  const rows = [];
  if (result.status === "ok" && typeof result.tb_score !== "number" && classes.length)
    rows.push(["Found", labels(result).join(", ") || "none of the labels"]);
  if (result.width) rows.push(["Film", `${result.width} x ${result.height} pixels`]);
  if (typeof result.lung_fraction === "number") rows.push(["Lungs", `${(100 * result.lung_fraction).toFixed(0)} % of the film`]);
  $("facts").replaceChildren(...rows.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
}

function place(box) {
  return `patient's ${box.side} lung, ${box.zone} zone`;
}

async function pictures(film) {
  const wanted = `${job.id}/${film.id}/${film.pictures.length}`;
  if (wanted === drawn) return;
  drawn = wanted;
  for (const url of urls.splice(0)) URL.revokeObjectURL(url);
  const has = film.pictures.includes("film.png");
  $("stage").hidden = $("controls").hidden = !has;
  if (!has) return;
  const load = (name) => (film.pictures.includes(name) ? picture(film, name) : null);
  const [pixels, mask, heat] = await Promise.all(["film.png", "mask.png", "heatmap.png"].map(load));
  if (wanted !== drawn) return; // another film was chosen meanwhile
  $("film").src = pixels.src;
  const regions = (film.result.boxes || []).map((box) => `${box.category}, ${place(box)}`);
  $("stage").setAttribute(
    "aria-label",
    `Film ${film.name}` + (regions.length ? `, with boxes at: ${regions.join("; ")}` : ", without boxes")
  );
  paint($("heat"), heat, pixels, colour);
  paint($("outline"), mask, pixels, edge);
  boxes(film.result);
  settings();
}

async function picture(film, name) {
  const data = await (await ask(`v1/jobs/${job.id}/films/${film.id}/${name}`)).blob();
  const image = new Image();
  const url = URL.createObjectURL(data);
  urls.push(url);
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
    ...(result.boxes || []).map(({ bbox: [x, y, width, height] }) => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [name, value] of Object.entries({ x, y, width, height })) rect.setAttribute(name, value);
      return rect;
    })
  );
}

function settings() {
  $("heat").style.opacity = $("opacity").value / 100;
  $("opacity-said").textContent = `${$("opacity").value} %`;
  $("boxes").style.visibility = $("show-boxes").checked ? "visible" : "hidden";
  $("outline").style.visibility = $("show-outline").checked ? "visible" : "hidden";
}

async function zip() {
  const data = await (await ask(`v1/jobs/${job.id}/results.zip`)).blob();
  const link = element("a");
  link.href = URL.createObjectURL(data);
  link.download = `results-${job.id.slice(0, 8)}.zip`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say(`${link.download} downloaded`);
}

async function forget() {
  const gone = job;
  job = null;
  shown = drawn = "";
  $("list").replaceChildren();
  $("result").hidden = $("detail").hidden = true;
  $("film").removeAttribute("src");
  for (const url of urls.splice(0)) URL.revokeObjectURL(url);
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
    say("Deleted from the server");
    $("files").focus();
  }, fault)
);
for (const id of ["opacity", "show-boxes", "show-outline"]) $(id).addEventListener("input", settings);
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
start();
