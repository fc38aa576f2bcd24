// What the page holds, and small makers of elements. Text from logs enters through text nodes only, never as markup.
const data = JSON.parse(document.getElementById("deltah-data").textContent);
const levels = JSON.parse(document.getElementById("deltah-levels").textContent);
const { vocabulary, trajectories } = data.viewer;
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const { title: SIGNAL, unit: UNIT } = data.signal;
const MINUS = "\u2212";

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function svgEl(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const fixed = (value, digits) => value.toFixed(digits).replace("-", MINUS);
const signed = (value, digits) => (value > 0 ? "+" : "") + fixed(value, digits);
const inUnit = (text) => (UNIT ? `${text} ${UNIT}` : text);
const words = (name) => name.replaceAll("_", " ");
const subscript = (k) => String(k).replace(/\d/g, (d) => "₀₁₂₃₄₅₆₇₈₉"[d]);
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
// Milliseconds below a second, seconds with a decimal below two minutes, whole minutes from then on.
const duration = (seconds) => (seconds < 1 ? `${fixed(seconds * 1000, 0)} ms` : seconds < 120 ? `${fixed(seconds, 1)} s` : `${count(Math.round(seconds / 60), "minute")}`);

// Verdicts carry a shape beside their colour.
const GLYPH = { reduced: "▼", not_reduced: "▲", undecided: "◆", undefined: "–" };
const VERDICT = {
  reduced: `the whole interval of ${SIGNAL} lies below the margin` + (data.signal.is_method ? ": the model became more certain" : ""),
  not_reduced: `no part of the interval of ${SIGNAL} lies below the margin`,
  undecided: `the interval of ${SIGNAL} contains the margin: the log-probabilities recorded do not say`,
  undefined: `no ${SIGNAL} exists: no reasoning on one side of the call, or no answer to it`,
};

function verdictChip(verdict) {
  return el("span", { class: "label " + verdict, title: VERDICT[verdict] }, `${GLYPH[verdict]} ${words(verdict)}`);
}

// Colour class of an arm: the same rule as the charts, neutral for the start.
const hasStart = data.arms.length > 0 && data.arms[0].start;
function armClass(index) {
  if (hasStart) return index === 0 ? "a0" : "a" + (((index - 1) % 7) + 1);
  return "a" + ((index % 7) + 1);
}

function level(nats) {
  let k = 0;
  while (k < levels.length && nats >= levels[k]) k += 1;
  return k;
}

// Half the width of every bar of the signal, in its unit: holds 98 % of the values shown, so that bars compare across trajectories.
const valueLimit = (() => {
  const sizes = trajectories.flatMap((t) => t.blocks.filter((b) => b.kind === "round" && Number.isFinite(b.value)).map((b) => Math.abs(b.value)));
  if (!sizes.length) return 1;
  sizes.sort((a, b) => a - b);
  const wanted = Math.max(sizes[Math.floor((sizes.length - 1) * 0.98)], 0.01);
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((m) => m * power).find((v) => v >= wanted * 0.999);
})();
