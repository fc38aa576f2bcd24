// The trajectory viewer. Text from logs reaches the page through textContent only, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("deltah-data").textContent);
  const levels = JSON.parse(document.getElementById("deltah-levels").textContent);
  const { vocabulary, trajectories } = data.viewer;
  const byKey = new Map(trajectories.map((t) => [t.key, t]));
  const $ = (id) => document.getElementById(id);
  const MINUS = "\u2212";
  let shown = [];
  let current = null;
  let beside = null;

  const SVG = "http://www.w3.org/2000/svg";
  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  function svgEl(tag, attributes) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }
  const fixed = (value, digits) => value.toFixed(digits).replace("-", MINUS);
  const signed = (value, digits) => (value > 0 ? "+" : "") + fixed(value, digits);
  const words = (label) => label.replace("_", " ");

  // Colour class of an arm: the same rule as the charts, neutral for the start.
  const hasStart = data.arms.length > 0 && data.arms[0].start;
  function armClass(index) {
    if (hasStart) return index === 0 ? "a0" : "a" + (((index - 1) % 7) + 1);
    return "a" + ((index % 7) + 1);
  }

  function level(hundredths) {
    const nats = hundredths / 100;
    let k = 0;
    while (k < levels.length && nats >= levels[k]) k += 1;
    return k;
  }

  function tokenRun(block) {
    const run = el("div", { class: "run " + block.kind });
    block.tokens.forEach((token, i) => {
      const h = block.h ? block.h[i] : -1;
      const span = el("span", { class: h < 0 ? "tok u" : "tok h" + level(h) });
      span.textContent = vocabulary[token];
      span.title = h < 0 ? "not measured" : (h / 100).toFixed(2) + " nats";
      run.append(span);
    });
    if (block.cut) run.append(el("span", { class: "unit" }, ` … ${block.cut.toLocaleString("en")} more tokens are not shown`));
    return run;
  }

  function textRun(block) {
    const run = el("div", { class: "run " + block.kind });
    run.append(el("span", { class: "tok u" }, block.text));
    return run;
  }

  function segmentHead(t, k) {
    const s = t.segments[k];
    let text = "not measured";
    if (s && s.h !== null) {
      const open = s.high === null ? `[${s.low === null ? "?" : s.low.toFixed(2)}, ∞)` : `[${s.low.toFixed(2)}, ${s.high.toFixed(2)}]`;
      text = `H = ${s.h.toFixed(3)} nats` + (s.low !== s.high ? ` in ${open}` : "") + `, ${s.n} tokens`;
    }
    return el("div", { class: "seg" }, el("b", {}, `r${subscript(k)}`), el("span", {}, text));
  }
  const subscript = (k) => String(k).replace(/\d/g, (d) => "₀₁₂₃₄₅₆₇₈₉"[d]);

  // ΔH with its interval on [-limit, limit] nats.
  function deltaBar(block) {
    const limit = 2;
    const x = (value) => 66 + (Math.max(-limit, Math.min(limit, value)) / limit) * 62;
    const bar = svgEl("svg", { viewBox: "0 0 132 20", role: "img", "aria-label": "ΔH on a scale from -2 to 2 nats" });
    bar.append(svgEl("line", { x1: 4, y1: 10, x2: 128, y2: 10, class: "grid" }), svgEl("line", { x1: 66, y1: 2, x2: 66, y2: 18, class: "zero" }));
    if (block.delta_h === null || block.delta_h === undefined) return bar;
    const style = block.label === "reduced" ? "var(--good)" : block.label === "not_reduced" ? "var(--bad)" : "var(--none)";
    const low = block.low === null ? -limit : block.low;
    const high = block.high === null ? limit : block.high;
    bar.append(svgEl("rect", { x: Math.min(x(0), x(block.delta_h)), y: 7, width: Math.abs(x(block.delta_h) - x(0)), height: 6, style: `fill:${style};opacity:.45` }));
    if (low !== high) bar.append(svgEl("line", { x1: x(low), y1: 10, x2: x(high), y2: 10, style: `stroke:${style};stroke-width:2` }));
    bar.append(svgEl("circle", { cx: x(block.delta_h), cy: 10, r: 3.6, style: `fill:${style}` }));
    return bar;
  }

  function cutNote(count, what) {
    return count ? el("p", { class: "unit" }, `… ${count.toLocaleString("en")} more characters of ${what} are not shown`) : null;
  }

  function callCard(call) {
    const box = el("div", { class: "callbox" });
    const status = call.status === "ok" ? null : el("span", { class: "label no" }, call.status);
    const took = call.seconds === undefined || call.seconds === null ? null : el("span", { class: "unit" }, ` ${(call.seconds * 1000).toFixed(0)} ms`);
    box.append(el("div", {}, el("span", { class: "name" }, call.name), " ", ...[status, took].filter(Boolean)));
    box.append(el("pre", {}, call.arguments));
    const argumentsCut = cutNote(call.arguments_cut, "the arguments");
    if (argumentsCut) box.append(argumentsCut);
    box.append(call.result === null ? el("p", { class: "unit" }, "no result followed") : el("pre", { class: "result" }, call.result));
    const resultCut = cutNote(call.result_cut, "the result");
    if (resultCut) box.append(resultCut);
    return box;
  }

  function roundCards(block) {
    const cards = el("div", { class: "cards " + (block.label || "") });
    const head = el("header", {}, el("b", {}, `round ${block.k}`));
    if (block.label) {
      head.append(deltaBar(block));
      if (block.delta_h !== null) {
        const exact = block.low === block.high && block.low !== null;
        const low = block.low === null ? "−∞" : signed(block.low, 2);
        const high = block.high === null ? "∞" : signed(block.high, 2);
        head.append(el("span", {}, `ΔH ${signed(block.delta_h, 3)} nats` + (exact ? "" : ` in [${low}, ${high}]`)));
      }
      head.append(el("span", { class: "label " + block.label }, words(block.label)));
    } else head.append(el("span", { class: "unit" }, "no entropies recorded"));
    cards.append(head, ...block.calls.map(callCard));
    if (block.cut) cards.append(el("p", { class: "unit" }, `${block.cut} more calls of this round are not shown`));
    return cards;
  }

  function timeline(t) {
    const bars = el("div", { class: "timeline", "aria-label": "Mean entropy of each segment, nats" });
    const together = [current, beside].filter(Boolean).flatMap((other) => other.segments);
    const top = Math.max(0.5, ...together.map((s) => s.h || 0));
    t.segments.forEach((s, k) => {
      const height = s.h === null ? 0 : Math.round((s.h / top) * 46);
      bars.append(el("div", {}, s.h === null ? "–" : s.h.toFixed(2), el("i", { style: `height:${height}px` }), `r${subscript(k)}`));
    });
    return bars;
  }

  function outcomeLabel(t) {
    if (t.correct === null) return el("span", { class: "label" }, "not graded");
    return el("span", { class: "label " + (t.correct ? "yes" : "no") }, (t.correct ? "correct" : "not correct") + `, F1 ${t.outcome.toFixed(2)}`);
  }

  function column(t) {
    const view = el("article", { "data-key": t.key });
    const name = el("span", { class: armClass(t.arm) }, el("span", { class: "dot" }), el("bdi", {}, data.arms[t.arm].name));
    const counts = `${t.calls} calls` + (t.reduced === null ? "" : `, ${t.reduced} reduced`) + `, ${t.tokens} tokens`;
    view.append(el("div", { class: "who" }, name, el("span", { class: "unit" }, t.evaluation), outcomeLabel(t), el("span", { class: "unit" }, counts)));
    const answer = el("p", { class: "answer" }, el("span", { class: "unit" }, "answer "), t.prediction === null ? "–" : t.prediction);
    if (t.stop !== "answered" && t.stop !== "unknown") answer.append(" ", el("span", { class: "label no" }, "stopped: " + words(t.stop)));
    if (t.spans !== "exact") answer.append(" ", el("span", { class: "label" }, "spans: approximate"));
    view.append(answer);
    if (t.segments.length) view.append(timeline(t));
    let last = -1;
    for (const block of t.blocks) {
      if (block.kind === "round") { view.append(roundCards(block)); continue; }
      const run = block.tokens ? tokenRun(block) : textRun(block);
      if (block.kind === "prompt") { view.append(el("details", { class: "prompt" }, el("summary", {}, "prompt"), run)); continue; }
      if (block.r !== undefined && block.r !== last) { view.append(segmentHead(t, block.r)); last = block.r; }
      view.append(run);
    }
    view.append(el("p", { class: "unit" }, `id ${t.id}, estimator ${t.estimator}` + (t.temperature === null ? "" : `, temperature ${t.temperature}`)));
    return view;
  }

  const siblings = (t) => trajectories.filter((other) => other.question === t.question);

  function render() {
    const main = $("v-main");
    main.replaceChildren();
    if (!current) { main.append(el("p", { class: "about" }, "No trajectory fits the filter.")); return; }
    main.append(el("p", { class: "question" }, current.text === null ? current.id : current.text));
    if (current.golden.length) main.append(el("p", { class: "answer" }, el("span", { class: "unit" }, "expected "), current.golden.join("  ·  ")));
    const family = siblings(current);
    if (family.length > 1) {
      const buttons = family.map((t) => el("button", { type: "button", "aria-pressed": String(t === current), onclick: () => go(t, beside) },
        `${data.arms[t.arm].name}, ${t.evaluation}` + (t.correct === null ? "" : t.correct ? " ✓" : " ✗")));
      const toggle = el("button", { type: "button", onclick: toggleBeside }, beside ? "close the second" : "put side by side");
      main.append(el("div", { class: "siblings" }, ...buttons, toggle));
    }
    const columns = el("div", { class: "columns" + (beside ? " beside" : "") });
    if (beside) columns.append(column(beside));
    columns.append(column(current));
    main.append(columns);
  }

  function toggleBeside() {
    if (!current) return;
    const same = siblings(current).filter((t) => t !== current);
    const match = same.find((t) => t.evaluation === current.evaluation) || same[0];
    go(current, beside ? null : match || null);
  }

  // The address is the state: a link to a trajectory is a link to what is on the screen.
  function go(t, second) {
    const paired = second && second.question === t.question && second !== t ? second : null;
    location.hash = "t=" + encodeURIComponent(t.key) + (paired ? "&vs=" + encodeURIComponent(paired.key) : "");
  }

  function readHash() {
    const parts = new URLSearchParams(location.hash.replace(/^#/, "").replaceAll("+", "%2B"));
    const found = byKey.get(parts.get("t"));
    if (!found) return false;
    current = found;
    beside = byKey.get(parts.get("vs")) || null;
    if (!shown.includes(current)) { clearFilter(); applyFilter(); }
    mark();
    render();
    return true;
  }

  function clearFilter() {
    for (const id of ["v-arm", "v-evaluation", "v-outcome"]) $(id).value = "";
  }

  const ORDER = {
    waste: (a, b) => (b.waste ?? -1) - (a.waste ?? -1) || b.calls - a.calls,
    calls: (a, b) => b.calls - a.calls,
    question: (a, b) => a.question - b.question || a.arm - b.arm,
  };

  function applyFilter() {
    const arm = $("v-arm").value, evaluation = $("v-evaluation").value, outcome = $("v-outcome").value;
    const wanted = { correct: true, incorrect: false, ungraded: null }[outcome];
    shown = trajectories.filter((t) => (arm === "" || t.arm === Number(arm)) && (evaluation === "" || t.evaluation === evaluation)
      && (outcome === "" || t.correct === wanted)).sort(ORDER[$("v-sort").value]);
    $("v-count").textContent = `${shown.length} of ${trajectories.length} trajectories`;
    $("v-list").replaceChildren(...shown.map(item));
    mark();
  }

  function item(t, i) {
    const who = data.arms.length > 1 ? `${data.arms[t.arm].name}, ${t.evaluation} · ` : "";
    const facts = who + (t.waste === null ? `${t.calls} calls` : `${t.waste}/${t.calls} not reduced`);
    const grade = t.correct === null ? "" : t.correct ? "✓ " : "✗ ";
    return el("div", { class: "item", role: "option", id: "v-item-" + i, "aria-selected": "false", onclick: () => go(t, null) },
      el("div", { class: "q" }, grade + (t.text === null ? t.id : t.text)), el("div", { class: "unit q" }, facts));
  }

  function mark() {
    const at = shown.indexOf(current);
    [...$("v-list").children].forEach((node, i) => node.setAttribute("aria-selected", String(i === at)));
    const node = $("v-item-" + at);
    if (!node) { $("v-list").removeAttribute("aria-activedescendant"); return; }
    $("v-list").setAttribute("aria-activedescendant", node.id);
    const list = $("v-list");
    if (node.offsetTop < list.scrollTop || node.offsetTop + node.offsetHeight > list.scrollTop + list.clientHeight)
      list.scrollTop = node.offsetTop - list.clientHeight / 2;
  }

  function step(by) {
    if (!shown.length) return;
    const at = shown.indexOf(current);
    const next = at < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, at + by));
    go(shown[next], null);
  }

  function stepSibling(by) {
    if (!current) return;
    const family = siblings(current);
    const next = family[(family.indexOf(current) + by + family.length) % family.length];
    go(next, beside);
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || ["SELECT", "INPUT", "TEXTAREA"].includes(event.target.tagName)) return;
    const inside = $("v").contains(document.activeElement);
    const actions = { j: () => step(1), k: () => step(-1), c: toggleBeside };
    if (inside) Object.assign(actions, { ArrowDown: () => step(1), ArrowUp: () => step(-1), ArrowLeft: () => stepSibling(-1), ArrowRight: () => stepSibling(1) });
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  function start() {
    data.arms.forEach((arm, i) => $("v-arm").append(el("option", { value: i }, arm.name)));
    data.evaluations.forEach((name) => $("v-evaluation").append(el("option", { value: name }, name)));
    $("v").hidden = false;
    $("v-list").style.position = "relative";
    applyFilter();
    $("v-filter").addEventListener("change", () => {
      applyFilter();
      if (!shown.includes(current)) { if (shown.length) go(shown[0], null); else { current = null; render(); } }
    });
    $("v-filter").addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", onKey);
    window.addEventListener("hashchange", readHash);
    const linked = readHash();
    if (linked) $("viewer").scrollIntoView();
    else { current = shown[0] || null; mark(); render(); }
  }
  start();
})();
