// Runs of tokens coloured by entropy, and the cards of the calls between them.
function tokenRun(block) {
  const run = el("div", { class: "run " + block.kind });
  block.tokens.forEach((token, i) => {
    const h = block.h ? block.h[i] : -1;
    const span = document.createElement("span");
    span.className = h < 0 ? "tok u" : "tok h" + level(h / 100);
    span.textContent = vocabulary[token];
    span.title = h < 0 ? "not measured" : (h / 100).toFixed(2) + " nats";
    run.append(span);
  });
  if (block.cut) run.append(el("span", { class: "unit" }, ` … ${count(block.cut, "more token")} not shown`));
  return run;
}

function textRun(block) {
  return el("div", { class: "run " + block.kind }, el("span", { class: "tok u" }, block.text));
}

function segmentText(s) {
  if (!s || s.h === null) return "not measured";
  const low = s.low === null ? "0" : s.low.toFixed(3);
  const within = s.high === null ? `[${low}, ∞)` : `[${low}, ${s.high.toFixed(3)}]`;
  return `H = ${s.h.toFixed(3)} nats` + (s.low !== s.high ? ` in ${within}` : "") + `, ${count(s.n, "token")}`;
}

function segmentHead(t, k) {
  return el("div", { class: "seg", "data-at": "s" + k }, el("b", {}, `r${subscript(k)}`), el("span", {}, segmentText(t.segments[k])));
}

const isExact = (block) => block.low === block.high && block.low !== null;

function valueText(block) {
  if (block.value === null || block.value === undefined) return `${SIGNAL} not defined` + (block.reason ? `: ${block.reason}` : "");
  const low = block.low === null ? `(${MINUS}∞` : "[" + signed(block.low, 3);
  const high = block.high === null ? "∞)" : signed(block.high, 3) + "]";
  return inUnit(`${SIGNAL} ${signed(block.value, 3)}`) + (isExact(block) ? "" : ` in ${low}, ${high}`);
}

// The signal with its interval on [-valueLimit, valueLimit]; what lies beyond ends in an arrow.
function valueBar(block) {
  const x = (value) => 80 + (Math.max(-valueLimit, Math.min(valueLimit, value)) / valueLimit) * 72;
  const bar = svgEl("svg", { viewBox: "0 0 160 20", role: "img", class: "delta " + block.verdict, "aria-label": inUnit(`${valueText(block)}, on a scale of ${MINUS}${valueLimit} to +${valueLimit}`) });
  bar.append(svgEl("line", { x1: 8, y1: 10, x2: 152, y2: 10, class: "grid" }), svgEl("line", { x1: 80, y1: 1, x2: 80, y2: 19, class: "zero" }));
  if (block.value === null || block.value === undefined) return bar;
  const low = block.low ?? -Infinity, high = block.high ?? Infinity, at = x(block.value);
  bar.append(svgEl("rect", { x: Math.min(x(0), at), y: 6, width: Math.abs(at - x(0)), height: 8, class: "fill" }));
  if (low !== high) bar.append(svgEl("line", { x1: x(low), y1: 10, x2: x(high), y2: 10, class: "whisker" }));
  if (low < -valueLimit) bar.append(svgEl("path", { d: "M2,10 L8,6 L8,14 Z", class: "point" }));
  if (high > valueLimit) bar.append(svgEl("path", { d: "M158,10 L152,6 L152,14 Z", class: "point" }));
  if (Math.abs(block.value) <= valueLimit) bar.append(svgEl("circle", { cx: at, cy: 10, r: 3.8, class: "point" }));
  return bar;
}

function cutNote(lost, what) {
  return lost ? el("p", { class: "unit" }, `… ${count(lost, "more character")} of ${what} not shown`) : null;
}

// What the text says of a call: full for certified waste, outlined for likely, dotted for a hint.
function wasteChips(call) {
  if (!call.waste) return null;
  const { classes, levels } = data.waste.meanings;
  const spared = data.signal.is_method ? "The call reduced entropy all the same." : "The call counts as reduced all the same.";
  const held = call.waste_level === "none" ? spared : `${words(call.waste_level)}: ${levels[call.waste_level]}`;
  return el("span", { class: "chips" }, ...call.waste.map((name) => el("span", { class: "chip " + call.waste_level, title: `${classes[name]} ${held}` }, words(name))));
}

function callCard(call) {
  const status = call.status === "ok" ? null : el("span", { class: "label no" }, words(call.status));
  const took = Number.isFinite(call.seconds) ? el("span", { class: "unit" }, duration(call.seconds)) : null;
  const head = el("div", { class: "callhead" }, el("bdi", { class: "name" }, call.name), status, wasteChips(call), took);
  const result = call.result === null ? el("p", { class: "unit" }, "no result followed") : el("pre", { class: "result", "aria-label": "result" }, call.result);
  return el("div", { class: "callbox" }, head, el("pre", { "aria-label": "arguments" }, call.arguments), cutNote(call.arguments_cut, "the arguments"), result, cutNote(call.result_cut, "the result"));
}

function roundCards(t, block) {
  const anchor = el("a", { class: "anchor", href: link(t, "r" + block.k), title: "link to this round" }, `round ${block.k}`);
  const head = el("header", {}, anchor);
  if (block.verdict) head.append(verdictChip(block.verdict), valueBar(block), el("span", { class: "unit" }, valueText(block)));
  else head.append(el("span", { class: "unit" }, "no entropies recorded"));
  const more = block.cut ? el("p", { class: "unit" }, `${count(block.cut, "more call")} of this round not shown`) : null;
  return el("div", { class: "cards " + (block.verdict || ""), "data-at": "r" + block.k, tabindex: "-1" }, head, ...block.calls.map(callCard), more);
}
