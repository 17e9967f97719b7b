"use strict";
(() => {
  const PAGE = 50; // films a page of the table
  const PRINTED = 60; // pictures of a printout: of the films that screen positive, the highest scores first
  const SVG = "http://www.w3.org/2000/svg";
  const $ = (id) => document.getElementById(id);
  const read = (id) => JSON.parse($(id).textContent);

  const facts = read("facts");
  const rows = read("rows");
  // A text in the page's language; English where there is none. {names} are filled in.
  const t = (english, values = {}) =>
    Object.entries(values).reduce((text, [name, value]) => text.replaceAll(`{${name}}`, value), facts.texts[english] || english);
  rows.forEach((row, number) => {
    row.number = number;
    row.name = row.image.split(/[/\\]/).pop();
    row.folder = row.image.slice(0, -row.name.length - 1);
    row.count = row.regions ? row.regions.length : undefined;
    row.labels = row.label ? row.label.split("|") : [];
    if (facts.several) row.labels.sort((a, b) => row.p[b] - row.p[a]); // the likeliest first
    const more = row.labels.length > 1 ? ` +${row.labels.length - 1}` : "";
    row.answer = row.labels.length ? row.labels[0] + more : facts.several && row.p ? t("none") : undefined;
    if (row.screen && row.label) row.answer = `${t(row.screen)}; ${t("likeliest {label}", { label: row.label })}`;
    row.said = row.said || row.error; // in the page's language, where they have a code; results.csv says more
    row.noted = row.noted || row.warnings;
    row.text = [row.image, row.id, row.status, row.label, row.error, row.warnings, row.said, row.noted].join(" ").toLowerCase();
  });
  const scoreName = t("{name} score", { name: facts.positive });
  const folders = new Set(rows.map((row) => row.folder));
  const anyLungs = rows.some((row) => row.lungs !== undefined); // a chain without segmentation finds none
  const state = { sort: "score", down: true, page: 0, shown: rows, chosen: null };

  // ---- small helpers ----
  function make(tag, attributes, ...children) {
    const out = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) out.setAttribute(name, value);
    out.append(...children);
    return out;
  }
  function shape(tag, attributes, text) {
    const out = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) out.setAttribute(name, value);
    if (text !== undefined) out.textContent = text;
    return out;
  }
  const fixed = (value, digits) => (value === undefined ? "" : value.toFixed(digits));
  const place = (region) => t("{side} lung, {zone} zone", { side: t(region.side), zone: t(region.zone) });

  function describe(row) {
    const parts = [`${t("Chest X-ray")} ${row.name}: ${t(row.status)}`];
    if (row.screen) parts.push(`${t("screen {screen}", { screen: t(row.screen) })}, ${t("likeliest {label}", { label: row.label })}`);
    else if (row.answer) parts.push(`${t("Answer")} ${row.labels.join(", ") || t("none of the labels")}`);
    if (row.scored) parts.push(t("probability of {name} {p} %", { name: row.scored, p: fixed(row.score, 1) }));
    else if (row.score !== undefined) parts.push(t("{name} {score} of 100", { name: scoreName, score: fixed(row.score, 1) }));
    if (row.regions) {
      const where = row.regions.map((one) => `${one.category}: ${place(one)}`).join("; ");
      parts.push(row.regions.length ? `${t("Regions to look at")}: ${where}` : t("no regions to look at"));
    }
    if (row.said) parts.push(row.said);
    return parts.join(", ");
  }

  function pieces(row) {
    const block = row.embedded ? $(`film-${row.number}`) : null;
    if (block) {
      const one = JSON.parse(block.textContent);
      if (one.film) one.src = `data:image/jpeg;base64,${one.film}`;
      return one;
    }
    return row.overlay ? { src: row.overlay.split("/").map(encodeURIComponent).join("/"), from: "linked" } : {};
  }

  // ---- the table ----
  function score() {
    // Of several labels a film, the score is the probability of the label asked for, else of the likeliest.
    const asked = $("answer").value;
    for (const row of rows.filter((one) => one.p)) {
      const likeliest = Object.keys(row.p).reduce((best, name) => (row.p[name] > row.p[best] ? name : best));
      row.scored = asked in row.p ? asked : likeliest;
      row.score = 100 * row.p[row.scored];
    }
  }
  function answers(row, asked) {
    return asked === "|" ? Boolean(row.p) && !row.labels.length : row.labels.includes(asked);
  }
  function filtered() {
    const find = $("find").value.trim().toLowerCase();
    const [low, high] = [$("low").value, $("high").value];
    const keep = (row) =>
      (!find || row.text.includes(find)) &&
      (!$("status").value || row.status === $("status").value) &&
      (!$("answer").value || answers(row, $("answer").value)) &&
      (!$("screen").value || row.screen === $("screen").value) &&
      (low === "" || row.score >= Number(low)) &&
      (high === "" || row.score <= Number(high)) &&
      (!$("warned").checked || Boolean(row.warnings));
    return rows.filter(keep);
  }
  function sorted(list) {
    const key = state.sort;
    const sign = state.down ? -1 : 1;
    return list.sort((a, b) => {
      const [x, y] = [a[key], b[key]];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined) || a.number - b.number;
      const order = typeof x === "string" ? (x < y ? -1 : x > y ? 1 : 0) : x - y;
      return sign * order || a.number - b.number;
    });
  }
  function line(row) {
    const tr = make("tr", { role: "row" }); // roles in words: a phone's layout of the table would lose them
    if (row === state.chosen) tr.setAttribute("aria-current", "true");
    const thumb = make("td", { class: "thumb", role: "cell" });
    const picture = pieces(row);
    if (picture.src) thumb.append(make("img", { src: picture.src, alt: describe(row) }));
    const open = make("button", { type: "button" }, row.name);
    open.addEventListener("click", () => choose(row, true));
    const name = make("th", { scope: "row", class: "name", role: "rowheader" }, open);
    if (folders.size > 1) name.append(make("span", { class: "folder" }, row.folder || "."));
    if (row.said || row.noted) {
      const why = [row.said, row.noted].filter(Boolean).join("; ");
      name.append(make("span", { class: "why", title: why }, why)); // two lines of it; all of it is with the film
    }
    const cell = (title, text) => make("td", { "data-name": title, role: "cell" }, text);
    const where = row.regions ? row.regions.map((one) => `${t(one.side)} ${t(one.zone)}`).join(", ") || t("none") : "";
    const answer = cell(t("Answer"), row.answer || "");
    if (row.labels.length > 1) answer.title = row.labels.join(", ");
    tr.append(thumb, name, cell(t("Status"), t(row.status)), answer);
    if (facts.several) tr.append(cell(t("Probability, %"), row.scored ? `${fixed(row.score, 1)} ${row.scored}` : ""));
    else tr.append(cell(scoreName, fixed(row.score, 1)));
    if (anyLungs) tr.append(cell(t("Lungs"), row.lungs === undefined ? "" : `${fixed(100 * row.lungs, 0)} %`));
    tr.append(cell(t("Regions to look at"), row.regions && row.regions.length ? `${row.regions.length}: ${where}` : where));
    return tr;
  }
  function render() {
    const pages = Math.max(1, Math.ceil(state.shown.length / PAGE));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    const from = state.page * PAGE;
    $("body").replaceChildren(...state.shown.slice(from, from + PAGE).map(line));
    $("page").textContent = t("page {n} of {m}", { n: state.page + 1, m: pages });
    $("first").disabled = $("back").disabled = state.page === 0;
    $("last").disabled = $("forward").disabled = state.page === pages - 1;
    const say = t("{n} of {m} films", { n: state.shown.length, m: rows.length });
    if ($("count").textContent !== say) $("count").textContent = say;
    for (const button of document.querySelectorAll("[data-sort]")) {
      const on = button.dataset.sort === state.sort;
      button.parentElement.setAttribute("aria-sort", on ? (state.down ? "descending" : "ascending") : "none");
    }
  }
  function refresh() {
    if (facts.several) score();
    state.shown = sorted(filtered());
    state.page = 0;
    render();
    renew();
  }
  function turn(to) {
    state.page = to;
    render();
    document.querySelector(".films").scrollIntoView({ block: "nearest" });
  }

  // ---- one film ----
  function renew() {
    const at = state.shown.indexOf(state.chosen);
    $("before").disabled = at <= 0;
    $("after").disabled = at < 0 || at === state.shown.length - 1;
  }
  function step(by) {
    const at = state.shown.indexOf(state.chosen) + by;
    if (at < 0 || at >= state.shown.length) return;
    state.page = Math.floor(at / PAGE);
    choose(state.shown[at], false);
    $("film-name").scrollIntoView({ block: "nearest" });
  }
  function choose(row, focus) {
    state.chosen = row;
    $("film").hidden = false;
    show(row);
    render();
    renew();
    if (focus) {
      $("film").focus();
      $("film").scrollIntoView({ block: "nearest" });
    }
  }
  function close() {
    const at = state.shown.indexOf(state.chosen);
    state.chosen = null;
    $("film").hidden = true;
    if (at >= 0) state.page = Math.floor(at / PAGE);
    render();
    const buttons = $("body").querySelectorAll(".name button");
    if (at >= 0 && buttons.length) buttons[at % PAGE].focus();
  }
  function show(row) {
    const one = pieces(row);
    const drawnIn = one.from !== "source"; // the overlay: outline, heat and boxes are in the picture already
    $("film-name").textContent = row.name;
    $("picture").hidden = !one.src;
    $("bare").src = one.src || "data:,";
    $("bare").alt = describe(row);
    $("controls").hidden = $("heat-note").hidden = drawnIn;
    const notes = {
      source: t("The film as read from its file, small; grey levels stretched for looking only."),
      overlay: t("The source film is not there any more, or has changed: this is the overlay of the run, with the lung outline, heat and boxes drawn in."),
      linked: t("A link to the folder overlays beside this page, with the lung outline, heat and boxes drawn in."),
    };
    $("caption").textContent = one.src
      ? `${notes[one.from]} ${t("The patient's right is on the left of the picture.")}`
      : t("No picture: the film was not read, or no lungs were found in it.");
    draw(row, one, drawnIn);
    paint(row, one.heat, drawnIn);
    const heatOf = row.heatmap_label || (row.count ? row.regions[0].category : facts.positive);
    const certainty = row.p && heatOf in row.p ? row.p[heatOf] : (row.score || 0) / 100;
    $("opacity").value = Math.round(100 * facts.heat * certainty);
    $("opacity").disabled = !one.heat;
    opacity();
    $("heat-note").textContent = one.heat
      ? `Grad-CAM${heatOf ? ` (${heatOf}${why(row, heatOf)})` : ""}. ${t("It is relative: its strongest place is red however weak the evidence, so the slider starts at half the probability.")}`
      : t("This film has no heat map.");
    $("verdict").textContent = verdict(row);
    bars(row);
    regions(row);
    details(row);
  }
  function why(row, heatOf) {
    if (facts.asked === heatOf) return `, ${t("which --label asked for")}`;
    if (!facts.several) return "";
    return `, ${row.labels.length ? t("the likeliest label of the answer") : t("the likeliest label")}`;
  }
  function verdict(row) {
    if (row.status !== "ok") return `${t(row.status)}: ${row.said || t("no reason given")}`;
    const lungs = row.lungs === undefined ? "" : `${t("Lungs found: {share} % of the film.", { share: fixed(100 * row.lungs, 1) })} `;
    if (!row.p) return lungs + t("Not classified.");
    if (facts.several) {
      if (!row.labels.length) return t("Answer: none of the labels, as none reaches its threshold.");
      const given = { labels: row.labels.join(", ") };
      return t("Answer: {labels}. What is at or above its own threshold counts; the likeliest comes first.", given);
    }
    const values = { name: scoreName, score: fixed(row.score, 1), label: row.label, cutoff: fixed(facts.cutoff === null ? undefined : facts.cutoff, 1) };
    if (facts.threshold === null) return t("{name} {score} of 100. Answer: {label}.", values);
    const where =
      row.score >= facts.cutoff
        ? t("{name} {score} of 100, at or above the threshold, {cutoff}. Likeliest class: {label}.", values)
        : t("{name} {score} of 100, below the threshold, {cutoff}. Likeliest class: {label}.", values);
    return row.screen ? `${t("screen {screen}", { screen: t(row.screen) })}. ${where}` : where;
  }
  function draw(row, one, drawnIn) {
    drawInto($("drawn"), row, one, drawnIn, $("show-lungs").checked, $("show-boxes").checked);
  }
  function drawInto(svg, row, one, drawnIn, lungs, boxes) {
    svg.replaceChildren();
    if (drawnIn || !row.size) return;
    svg.setAttribute("viewBox", `0 0 ${row.size[0]} ${row.size[1]}`);
    if (one.lungs && lungs) svg.append(shape("path", { class: "lungs", d: one.lungs }));
    if (!boxes) return;
    const letters = row.size[0] / 24;
    (row.regions || []).forEach((region, number) => {
      const [x, y, w, h] = region.bbox;
      svg.append(shape("rect", { class: "box", x, y, width: w, height: h }));
      const text = { x: x + letters / 4, y: y + letters, "font-size": letters };
      const label = shape("text", text, number + 1);
      label.style.fontSize = `${letters}px`;
      label.style.strokeWidth = `${letters / 6}px`;
      svg.append(label);
    });
  }
  function paint(row, heat, drawnIn) {
    const canvas = $("heat");
    canvas.hidden = !heat || drawnIn;
    canvas.width = canvas.width; // empties it
    if (canvas.hidden) return;
    const image = new Image();
    image.onload = () => {
      if (state.chosen !== row) return; // another film was chosen meanwhile
      [canvas.width, canvas.height] = [image.width, image.height];
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const cells = context.getImageData(0, 0, canvas.width, canvas.height);
      for (let at = 0; at < cells.data.length; at += 4) {
        const level = cells.data[at];
        const strength = Math.max(0, (level / 255 - facts.faint) / (1 - facts.faint));
        for (let n = 0; n < 3; n++) cells.data[at + n] = colours.charCodeAt(3 * level + n);
        cells.data[at + 3] = Math.round(255 * strength);
      }
      context.putImageData(cells, 0, 0);
    };
    image.src = `data:image/png;base64,${heat}`;
  }
  const colours = atob(facts.colours);
  function opacity() {
    $("opacity-text").textContent = `${$("opacity").value} %`;
    $("opacity").setAttribute("aria-valuetext", `${$("opacity").value} %`);
    $("heat").style.opacity = $("opacity").value / 100;
  }
  function titled(caption, kind, head) {
    const top = make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)));
    return make("table", { class: kind }, make("caption", {}, caption), make("thead", {}, top));
  }
  function bars(row) {
    $("bars").replaceChildren();
    if (!row.p) return;
    const thresholds = facts.several ? facts.thresholds : facts.threshold === null ? {} : { [facts.positive]: facts.threshold };
    const marked = facts.classes.filter((name) => name in row.p && name in thresholds);
    const one = `; ${t("the mark on {name} is the threshold", { name: facts.positive })}`;
    const mark = !marked.length ? "" : facts.several ? `; ${t("the marks are the labels' own thresholds")}` : one;
    const table = titled(t("Probabilities") + mark, "bars", [t("class"), t("probability"), ""]);
    const body = make("tbody");
    for (const name of facts.classes.filter((one) => one in row.p)) {
      const svg = shape("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
      svg.append(shape("rect", { class: "bar", x: 0, y: 0, width: 100 * row.p[name], height: 10 }));
      if (name in thresholds) {
        const x = 100 * thresholds[name];
        const ends = { x1: x, x2: x, y1: 0, y2: 10, "vector-effect": "non-scaling-stroke" };
        svg.append(shape("line", { class: "threshold", ...ends }));
      }
      const percent = `${fixed(100 * row.p[name], 1)} %`;
      const answered = facts.several && row.labels.includes(name) ? { class: "answered" } : {};
      body.append(make("tr", answered, make("th", { scope: "row" }, name), make("td", {}, percent), make("td", { class: "track" }, svg)));
    }
    table.append(body);
    $("bars").append(table);
  }
  function regions(row) {
    const list = row.regions || [];
    if (!list.length) {
      const none = facts.several
        ? t("None: no label reaches its threshold, or nothing stands out.")
        : t("None: screening is negative, and normal is likeliest, or nothing stands out.");
      const text = row.regions ? none : t("Not looked for.");
      $("regions").replaceChildren(make("p", {}, text));
      return;
    }
    const items = list.map((one) => {
      const [x, y, w, h] = one.bbox;
      return make("li", {}, `${one.category}, ${place(one)}, ${t("score")} ${fixed(one.score, 2)} (x ${x}, y ${y}, ${w} x ${h} px)`);
    });
    $("regions").replaceChildren(make("ol", {}, ...items), make("p", { class: "small" }, t("Sides are the patient's own.")));
  }
  function details(row) {
    const facts_of = [
      [t("file"), row.image],
      ["id", row.id],
      [t("status"), t(row.status)],
      [t("reason"), row.error],
      [t("warnings"), row.warnings],
      [t("size"), row.size && `${row.size[0]} x ${row.size[1]} px`],
      [t("lungs"), row.lungs !== undefined && t("{share} % of the film", { share: fixed(100 * row.lungs, 1) })],
      ["SHA-256", row.sha256],
      ...Object.entries(row.further || {}),
    ];
    const table = titled(t("What results.csv says"), "facts", [t("what"), t("value")]);
    const body = make("tbody");
    for (const [name, value] of facts_of) {
      if (value) body.append(make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
    }
    table.append(body);
    $("details").replaceChildren(table);
  }

  // ---- wiring ----
  $("show-lungs").parentElement.hidden = document.querySelector("[data-sort=lungs]").parentElement.hidden = !anyLungs;
  $("filter").addEventListener("submit", (event) => event.preventDefault());
  $("filter").addEventListener("input", refresh);
  $("filter").addEventListener("reset", () => setTimeout(refresh));
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const same = state.sort === button.dataset.sort;
      state.down = same ? !state.down : ["score", "lungs", "count"].includes(button.dataset.sort);
      state.sort = button.dataset.sort;
      refresh();
    });
  }
  $("first").addEventListener("click", () => turn(0));
  $("back").addEventListener("click", () => turn(state.page - 1));
  $("forward").addEventListener("click", () => turn(state.page + 1));
  $("last").addEventListener("click", () => turn(Infinity));
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  $("close").addEventListener("click", close);
  $("film").addEventListener("keydown", (event) => event.key === "Escape" && close());
  $("opacity").addEventListener("input", opacity);
  for (const id of ["show-lungs", "show-boxes"]) $(id).addEventListener("change", () => show_again());
  function show_again() {
    const one = pieces(state.chosen);
    draw(state.chosen, one, one.from !== "source");
  }
  // ---- on paper: what screens positive with its picture, the rest as a list ----
  function card(row) {
    const one = pieces(row);
    const drawnIn = one.from !== "source";
    const picture = make("div", { class: "picture" });
    if (one.src) {
      const svg = shape("svg", { preserveAspectRatio: "none" });
      drawInto(svg, row, one, drawnIn, true, true);
      picture.append(make("img", { src: one.src, alt: describe(row) }), svg);
    }
    const where = (row.regions || []).map((region, number) => `${number + 1}: ${place(region)}`).join("; ");
    const lines = [make("strong", {}, row.name), ` ${fixed(row.score, 1)}`, make("br"), row.answer || "", make("br"), where];
    return make("figure", {}, picture, make("figcaption", {}, ...lines));
  }
  function entry(row) {
    const said = row.status === "ok" ? `${fixed(row.score, 1)} ${row.answer || ""}` : `${t(row.status)}: ${row.said || ""}`;
    const same = /same file as [^;]*/.exec(row.warnings || "");
    return make("li", {}, make("strong", {}, row.name), ` ${said}${same ? ` (${same[0]})` : ""}`);
  }
  function paper() {
    const first = state.shown.filter((row) => (row.screen ? row.screen === "positive" : row.labels.length && facts.several)).slice(0, PRINTED);
    const rest = state.shown.filter((row) => !first.includes(row));
    const parts = [];
    if (first.length) parts.push(make("div", { class: "cards" }, ...first.map(card)));
    if (rest.length) parts.push(make("h3", {}, first.length ? t("The other films") : t("Films")), make("ul", {}, ...rest.map(entry)));
    $("print-films").replaceChildren(...parts);
  }
  window.addEventListener("beforeprint", paper);
  window.addEventListener("afterprint", () => $("print-films").replaceChildren());
  refresh();
})();
