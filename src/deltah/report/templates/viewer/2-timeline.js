// The timeline: x counts the tokens that the policy drew, each round is a gap with its verdict, height is H(r_k).
const GAP = 22, PLOT = 62, STRIP = 9, TOP = 18, MIN_SEGMENT = 16;

function segmentTokens(t, k) {
  const listed = [];
  for (const block of t.blocks) if (block.r === k && block.h) for (const h of block.h) listed.push(h);
  return listed;
}

// Pixels a token and nats of the top, shared by what stands side by side.
function timelineScale(shown, width) {
  let pixels = Infinity;
  for (const t of shown) {
    const drawn = t.segments.reduce((sum, _, k) => sum + segmentTokens(t, k).length, 0);
    const room = width - GAP * (t.segments.length - 1) - 8;
    pixels = Math.min(pixels, Math.max(room, MIN_SEGMENT * t.segments.length) / Math.max(drawn, 1));
  }
  const tops = shown.flatMap((t) => t.segments.map((s) => Math.min(s.high ?? s.h ?? 0, 4 * (s.h ?? 0)) || 0));
  return { pixels, top: Math.max(0.05, ...tops) };
}

function timeline(t, scale) {
  const rounds = t.blocks.filter((block) => block.kind === "round");
  const y = (nats) => TOP + PLOT - (Math.min(nats, scale.top) / scale.top) * PLOT;
  const parts = [];
  let x = 4;
  t.segments.forEach((s, k) => {
    const tokens = segmentTokens(t, k);
    const width = Math.max(MIN_SEGMENT, tokens.length * scale.pixels);
    parts.push(timelineSegment(t, s, k, tokens, x, width, y));
    x += width;
    if (rounds[k]) parts.push(timelineRound(t, rounds[k], x + GAP / 2));
    x += GAP;
  });
  const width = Math.ceil(x - GAP + 4), height = TOP + PLOT + STRIP + 20;
  const picture = svgEl("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": "Mean entropy of each segment in nats, in the order of the trajectory" });
  picture.append(svgEl("line", { x1: 0, x2: width, y1: TOP + PLOT, y2: TOP + PLOT, class: "axis" }), ...parts);
  return el("div", { class: "timeline" }, picture);
}

function timelineSegment(t, s, k, tokens, x, width, y) {
  const middle = x + width / 2;
  const node = svgEl("a", { href: link(t, "s" + k) });
  node.append(svgEl("title", {}, document.createTextNode(`r${subscript(k)}: ${segmentText(s)}`)));
  if (s.h !== null) {
    node.append(svgEl("rect", { x, y: y(s.h), width, height: TOP + PLOT - y(s.h), class: "seg-bar f" + level(s.h) }));
    if (s.low !== s.high) {
      const high = s.high === null ? TOP : y(s.high);
      node.append(svgEl("line", { x1: middle, x2: middle, y1: y(s.low ?? 0), y2: high, class: "whisker" }));
    }
  }
  // One stripe for every two pixels at most: the mean of the tokens under it.
  const stripes = Math.max(1, Math.min(tokens.length, Math.floor(width / 2)));
  for (let i = 0; tokens.length && i < stripes; i += 1) {
    const under = tokens.slice(Math.floor((i * tokens.length) / stripes), Math.floor(((i + 1) * tokens.length) / stripes)).filter((h) => h >= 0);
    if (!under.length) continue;
    const mean = under.reduce((sum, h) => sum + h, 0) / under.length / 100;
    node.append(svgEl("rect", { x: (x + (i * width) / stripes).toFixed(2), y: TOP + PLOT + 1, width: (width / stripes + 0.1).toFixed(2), height: STRIP, class: "f" + level(mean) }));
  }
  if (s.h !== null && width >= 30) {
    const above = s.low === s.high ? y(s.h) : s.high === null ? TOP : Math.min(y(s.h), y(s.high));
    node.append(svgEl("text", { x: middle, y: Math.max(11, above - 4), class: "value" }, document.createTextNode(s.h.toFixed(2))));
  }
  node.append(svgEl("text", { x: middle, y: TOP + PLOT + STRIP + 15, class: "name" }, document.createTextNode("r" + subscript(k))));
  return node;
}

function timelineRound(t, round, x) {
  const verdict = round.verdict || "undefined";
  const text = `round ${round.k}: ${round.calls.map((call) => call.name).join(", ")}; ${round.verdict ? valueText(round) + ", " + words(verdict) : "not measured"}`;
  const node = svgEl("a", { href: link(t, "r" + round.k), class: "at-round " + verdict });
  node.append(svgEl("title", {}, document.createTextNode(text)), svgEl("rect", { x: x - GAP / 2, y: TOP, width: GAP, height: PLOT + STRIP + 18, class: "hit" }));
  node.append(svgEl("line", { x1: x, x2: x, y1: TOP + 8, y2: TOP + PLOT, class: "cut" }));
  node.append(svgEl("text", { x, y: TOP + 4, class: "glyph" }, document.createTextNode(GLYPH[verdict])));
  return node;
}
