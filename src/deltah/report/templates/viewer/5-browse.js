// The list of trajectories: filter, order, keys. The address is the state: a link names what is on the screen.
const byKey = new Map(trajectories.map((t) => [t.key, t]));
let shown = [];
// With exactly two runs one comes to compare them.
let pairing = data.arms.length === 2;

function address(t, second, at) {
  return "#t=" + encodeURIComponent(t.key) + (second ? "&vs=" + encodeURIComponent(second.key) : "") + (at ? "&at=" + at : "");
}

// A part of a trajectory that is on the screen, with the other one kept beside it.
function link(t, at) {
  return address(t, t === current ? beside : current, at);
}

function go(t, second) {
  const wanted = second === undefined ? (pairing ? partner(t) : null) : second;
  const paired = wanted && wanted.question === t.question && wanted !== t ? wanted : null;
  location.hash = address(t, paired);
}

function togglePair() {
  if (!current) return;
  pairing = !beside;
  go(current, beside ? null : partner(current));
}

function readHash() {
  const parts = new URLSearchParams(location.hash.replace(/^#/, "").replaceAll("+", "%2B"));
  const found = byKey.get(parts.get("t"));
  if (!found) return false;
  const second = byKey.get(parts.get("vs")) || null, at = parts.get("at");
  const same = found === current && second === beside;
  current = found;
  beside = second;
  if (!shown.includes(current)) { clearFilter(); applyFilter(); }
  if (!same) { mark(); render(); }
  if (at) reveal(at);
  return true;
}

const FIELDS = ["v-search", "v-arm", "v-evaluation", "v-outcome", "v-tool", "v-show"];
function clearFilter() {
  for (const id of FIELDS) $(id).value = "";
}

const wrong = (t) => t.correct === false && t.change !== null && t.change < 0;
const revised = (t) => t.correct === true && t.change !== null && t.change > 0;
const ORDER = {
  waste: (a, b) => b.waste.certified - a.waste.certified || b.waste.likely - a.waste.likely || (b.not_reduced ?? -1) - (a.not_reduced ?? -1) || b.calls - a.calls,
  wrong: (a, b) => wrong(b) - wrong(a) || (a.change ?? Infinity) - (b.change ?? Infinity),
  revised: (a, b) => revised(b) - revised(a) || (b.change ?? -Infinity) - (a.change ?? -Infinity),
  calls: (a, b) => b.calls - a.calls,
  tokens: (a, b) => b.tokens - a.tokens,
  question: (a, b) => a.question - b.question || a.arm - b.arm,
};
const SHOW = { "": () => true, waste: (t) => t.waste.certified + t.waste.likely > 0, not_reduced: (t) => t.not_reduced > 0, wrong, revised, drawn: (t) => t.reason === "drawn" };
const OUTCOME = { "": () => true, correct: (t) => t.correct === true, incorrect: (t) => t.correct === false, ungraded: (t) => t.correct === null };

const calls = (t) => t.blocks.flatMap((block) => (block.kind === "round" ? block.calls : []));
const contains = (t, sought) => [t.text, t.id, t.prediction].some((text) => text !== null && text.toLowerCase().includes(sought));

function applyFilter() {
  const [sought, arm, evaluation, outcome, tool, show] = FIELDS.map((id) => $(id).value);
  const needle = sought.trim().toLowerCase();
  shown = trajectories.filter((t) => (arm === "" || t.arm === Number(arm)) && (evaluation === "" || t.evaluation === evaluation)
    && OUTCOME[outcome](t) && SHOW[show](t) && (tool === "" || calls(t).some((call) => call.name === tool)) && (needle === "" || contains(t, needle)));
  shown.sort(ORDER[$("v-sort").value]);
  $("v-count").textContent = `${shown.length} of ${count(trajectories.length, "trajectory").replace(/ys$/, "ies")}`;
  $("v-list").replaceChildren(...shown.map(item));
  mark();
}

// One mark a call, in order: the verdicts at a glance.
function marks(t) {
  const strip = el("div", { class: "marks", "aria-hidden": "true" });
  const rounds = t.blocks.filter((block) => block.kind === "round");
  let left = 36;
  for (const round of rounds) for (const call of round.calls) {
    if ((left -= 1) < 0) break;
    const wasted = call.waste_level === "certified" || call.waste_level === "likely";
    strip.append(el("span", { class: "mk " + (round.verdict || "undefined") + (wasted ? " wasted" : "") }, GLYPH[round.verdict || "undefined"]));
  }
  if (left < 0) strip.append("…");
  return strip;
}

function item(t, i) {
  const who = data.arms.length > 1 || data.evaluations.length > 1 ? whose(t) + " · " : "";
  const wasted = t.waste.certified + t.waste.likely;
  const facts = who + count(t.calls, "call") + (wasted ? `, ${wasted} waste` : "") + (t.not_reduced ? `, ${t.not_reduced} not reduced` : "");
  const grade = t.correct === null ? null : el("span", { class: "grade " + (t.correct ? "yes" : "no"), title: t.correct ? "correct" : "not correct" }, t.correct ? "✓" : "✗");
  return el("div", { class: "item", role: "option", id: "v-item-" + i, "aria-selected": "false", onclick: () => go(t) },
    el("div", { class: "q" }, grade, el("bdi", {}, t.text === null ? t.id : t.text)), marks(t), el("div", { class: "unit q" }, el("bdi", {}, facts)));
}

function mark() {
  const at = shown.indexOf(current), list = $("v-list");
  [...list.children].forEach((node, i) => node.setAttribute("aria-selected", String(i === at)));
  const node = $("v-item-" + at);
  if (!node) { list.removeAttribute("aria-activedescendant"); return; }
  list.setAttribute("aria-activedescendant", node.id);
  if (node.offsetTop < list.scrollTop || node.offsetTop + node.offsetHeight > list.scrollTop + list.clientHeight)
    list.scrollTop = node.offsetTop - list.clientHeight / 2;
}

function step(by) {
  if (!shown.length) return;
  const at = shown.indexOf(current);
  go(shown[at < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, at + by))]);
}

function stepSibling(by) {
  if (!current) return;
  const family = siblings(current);
  go(family[(family.indexOf(current) + by + family.length) % family.length], beside);
}

// The next round below, or above, the one in the address.
function stepRound(by) {
  if (!current) return;
  const rounds = current.blocks.filter((block) => block.kind === "round").map((block) => block.k);
  const at = Number((/&at=r(\d+)/.exec(location.hash) || [])[1] || 0);
  const next = by > 0 ? rounds.find((k) => k > at) : rounds.findLast((k) => k < at);
  if (next !== undefined) location.hash = link(current, "r" + next);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && event.target === $("v-search")) { $("v-list").focus(); return; }
  if (["SELECT", "INPUT", "TEXTAREA"].includes(event.target.tagName)) return;
  const actions = { j: () => step(1), k: () => step(-1), n: () => stepRound(1), p: () => stepRound(-1), c: togglePair, "/": () => $("v-search").focus() };
  if ($("v").contains(document.activeElement))
    Object.assign(actions, { ArrowDown: () => step(1), ArrowUp: () => step(-1), ArrowLeft: () => stepSibling(-1), ArrowRight: () => stepSibling(1) });
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function options(id, pairs) {
  $(id).append(...pairs.map(([value, text]) => el("option", { value }, text)));
  if (pairs.length < 2) $(id).closest("label").hidden = true;
}

function start() {
  options("v-arm", data.arms.map((arm, i) => [i, arm.name]));
  options("v-evaluation", data.evaluations.map((name) => [name, name]));
  options("v-tool", [...new Set(trajectories.flatMap((t) => calls(t).map((call) => call.name)))].sort().slice(0, 200).map((name) => [name, name]));
  $("v-scale").textContent = inUnit(`${SIGNAL} bars reach from ${MINUS}${valueLimit} to +${valueLimit}`);
  $("v").hidden = false;
  applyFilter();
  $("v-filter").addEventListener("input", () => {
    applyFilter();
    if (shown.includes(current)) return;
    if (shown.length) go(shown[0]);
    else { current = beside = null; render(); }
  });
  $("v-filter").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", readHash);
  if (readHash()) { if (!location.hash.includes("&at=")) $("viewer").scrollIntoView(); }
  else { current = shown[0] || null; beside = pairing && current ? partner(current) : null; mark(); render(); }
  openForPrint();
}

// Paper cannot be clicked: every table is printed, and what was closed is closed again.
function openForPrint() {
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("main details:not([open]):not(.prompt)")];
    for (const node of opened) node.open = true;
  });
  window.addEventListener("afterprint", () => { for (const node of opened) node.open = false; });
}

start();
