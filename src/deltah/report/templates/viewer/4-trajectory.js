// One trajectory, or two side by side.
let current = null;
let beside = null;

// Arm and evaluation, where there are several.
const whose = (t) => (data.evaluations.length > 1 ? `${data.arms[t.arm].name}, ${t.evaluation}` : data.arms[t.arm].name);

function outcomeLabel(t) {
  if (t.correct === null) return el("span", { class: "label" }, "not graded");
  return el("span", { class: "label " + (t.correct ? "yes" : "no") }, (t.correct ? "✓ correct" : "✗ not correct") + `, ${data.outcome.title} ${t.outcome.toFixed(2)}`);
}

function changeText(t) {
  if (t.change === null) return null;
  return el("span", { class: "unit", title: "mean entropy of the last segment less that of the first" }, `H ${signed(t.change, 2)} nats from first to last`);
}

function column(t, scale) {
  const name = el("span", { class: armClass(t.arm) }, el("span", { class: "dot" }), el("bdi", {}, data.arms[t.arm].name));
  const counts = count(t.calls, "call") + (t.reduced === null ? "" : `, ${t.reduced} reduced`) + (t.tokens ? `, ${count(t.tokens, "sampled token")}` : "");
  const view = el("article", { "data-key": t.key });
  view.append(el("div", { class: "who" }, name, data.evaluations.length > 1 ? el("span", { class: "unit" }, t.evaluation) : null, outcomeLabel(t), el("span", { class: "unit" }, counts), changeText(t)));
  const answer = el("p", { class: "answer" }, el("span", { class: "unit" }, "answer "), el("bdi", {}, t.prediction === null ? "–" : t.prediction));
  if (t.stop !== "answered" && t.stop !== "unknown") answer.append(" ", el("span", { class: "label no" }, "stopped: " + words(t.stop)));
  if (t.spans !== "exact") answer.append(" ", el("span", { class: "label", title: "borders of reasoning and calls are estimated" }, "spans: approximate"));
  view.append(answer);
  if (t.segments.length) view.append(timeline(t, scale));
  let last = -1;
  for (const block of t.blocks) {
    if (block.kind === "round") { view.append(roundCards(t, block)); continue; }
    const run = block.tokens ? tokenRun(block) : textRun(block);
    // Delimiters go on in the line they end.
    if (block.kind === "control" && view.lastChild.classList.contains("run") && block.r === last) { view.lastChild.append(...run.childNodes); continue; }
    if (block.kind === "prompt") { view.append(el("details", { class: "prompt" }, el("summary", {}, "prompt"), run)); continue; }
    if (block.r !== undefined && block.r !== last) { view.append(segmentHead(t, block.r)); last = block.r; }
    view.append(run);
  }
  const temperature = t.temperature === null ? "" : `, temperature ${t.temperature}`;
  view.append(el("p", { class: "unit" }, "id ", el("bdi", {}, t.id), `, estimator ${words(t.estimator)}${temperature}`));
  return view;
}

const siblings = (t) => trajectories.filter((other) => other.question === t.question);

// The same question in another arm, decoded the same way where there is one.
function partner(t) {
  const same = siblings(t).filter((other) => other !== t);
  const elsewhere = same.filter((other) => other.arm !== t.arm);
  return elsewhere.find((other) => other.evaluation === t.evaluation) || elsewhere[0] || same[0] || null;
}

function render() {
  const main = $("v-main");
  main.replaceChildren();
  if (!current) { main.append(el("p", { class: "about" }, "No trajectory fits the filter.")); return; }
  const golden = current.golden.length ? el("p", { class: "answer" }, el("span", { class: "unit" }, "expected "), el("bdi", {}, current.golden.join("  ·  "))) : null;
  main.append(el("p", { class: "question" }, el("bdi", {}, current.text === null ? current.id : current.text)));
  if (golden) main.append(golden);
  const family = siblings(current);
  if (family.length > 1) {
    const buttons = family.map((t) => {
      const alike = family.filter((other) => whose(other) === whose(t));
      const number = alike.length > 1 ? ` ${alike.indexOf(t) + 1}` : "";
      return el("button", { type: "button", "aria-pressed": String(t === current), onclick: () => go(t, beside) },
        el("bdi", {}, whose(t)), number, t.correct === null ? "" : t.correct ? " ✓" : " ✗");
    });
    main.append(el("div", { class: "siblings" }, ...buttons, el("button", { type: "button", class: "pair", onclick: togglePair }, beside ? "show one" : "put side by side")));
  }
  // In the order of the arms, whichever of the two was opened.
  const shown = [current, beside].filter(Boolean).sort((a, b) => a.arm - b.arm || trajectories.indexOf(a) - trajectories.indexOf(b));
  const columns = el("div", { class: "columns" + (beside ? " beside" : "") });
  main.append(columns);
  const scale = timelineScale(shown, (columns.clientWidth - (beside ? 28 : 0)) / (beside && columns.clientWidth > 700 ? 2 : 1));
  columns.append(...shown.map((t) => column(t, scale)));
}

// Bring a part of the opened trajectory into view: "r3" is round 3, "s2" the head of segment r_2.
function reveal(at) {
  const own = [...$("v-main").querySelectorAll("article")].find((node) => node.dataset.key === current.key);
  const node = own && [...own.querySelectorAll("[data-at]")].find((found) => found.dataset.at === at);
  if (!node) return false;
  node.scrollIntoView({ block: "center" });
  if (node.tabIndex === -1) node.focus({ preventScroll: true });
  return true;
}
