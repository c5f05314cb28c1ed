// What both explorables share: elements, numbers in words, the row of step buttons with its keys, and the live region.

// element("button", { class: "x", onclick: f }, "text", child): attributes by name, listeners by on*, falsy children left out.
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function drawn(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

let serial = 0;
export const uniqueId = (name) => `course-${name}-${(serial += 1)}`;

// 3 significant places where they matter, never a false zero: 1.750, 22.04, 3.1e-8, −∞.
export function figure(x, places = 3) {
  if (x === Infinity) return "∞";
  if (x === -Infinity) return "−∞";
  if (Number.isNaN(x)) return "NaN";
  const size = Math.abs(x);
  if (size !== 0 && (size < 0.5 * 10 ** -places || size >= 1e6)) return x.toExponential(1).replace("-", "−").replace("e−", "e-").replace("e+", "e");
  return x.toFixed(places).replace("-", "−");
}

export const count = (n) => Math.round(n).toLocaleString("en-US");

// Bytes as in the lectures: kB = 1,000 bytes.
export function bytes(n) {
  for (const [size, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (n >= size) return `${(n / size).toFixed(n / size < 10 ? 2 : n / size < 100 ? 1 : 0)} ${unit}`;
  }
  return `${n} B`;
}

export const kib = (n) => `${(n / 1024).toFixed(n < 102400 ? 1 : 0)} KiB`;

// A stripe pattern: what is hatched is told apart without its colour. Use as fill `url(#id)`.
export function hatch(id, background, stripe) {
  const size = { width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  return drawn("pattern", { id, ...size },
    drawn("rect", { width: 6, height: 6, style: `fill:${background}` }),
    drawn("line", { x1: 1, y1: 0, x2: 1, y2: 6, style: `stroke:${stripe};stroke-width:1.2` }));
}

export function field(label, control) {
  return element("label", { class: "cw-field" }, element("span", {}, label), control);
}

export function choice(options, value, onchange) {
  const node = element("select", { onchange: () => onchange(node.value) });
  setOptions(node, options, value);
  return node;
}

// options: [value, text] pairs
export function setOptions(select, options, value) {
  select.replaceChildren(...options.map(([option, text]) => element("option", { value: option }, text)));
  select.value = String(value);
}

// Numbers beside the picture: {name: node}; `write(name, text, bad)` fills one in, `bad` adds the red and its mark.
export function readouts(names) {
  const cells = {};
  const node = element("dl", { class: "cw-numbers" });
  for (const [key, label] of Object.entries(names)) {
    cells[key] = element("dd", {});
    node.append(element("div", {}, element("dt", {}, label), cells[key]));
  }
  const write = (key, text, bad = false) => {
    cells[key].textContent = bad ? `⚠ ${text}` : text;
    cells[key].classList.toggle("cw-bad", bad);
  };
  return { node, write };
}

// Bars that share one scale: rows of {name, parts: [[class, value]], text, bad, limit}.
export function bars(rows, longest) {
  const share = (value) => `${(100 * value) / longest}%`;
  return rows.map(({ name, parts, text, bad, limit }) => element("div", { class: "cw-bar" },
    element("div", { class: "cw-bar-name" }, name, element("b", { class: bad ? "cw-bad" : null }, (bad ? " ⚠ " : " ") + text)),
    element("div", { class: "cw-bar-track" },
      parts.map(([look, value, title]) => element("span", { class: look, style: `width:${share(value)}`, title })),
      limit !== undefined && element("i", { class: "cw-bar-limit", style: `left:${share(limit)}` }))));
}

const still = () => window.matchMedia("(prefers-reduced-motion: reduce)").matches;

// Drawn, since fonts lack half of these signs: each a path in a 16 x 16 box.
const SIGNS = {
  first: "M3 3v10h2v-10zM13 3v10l-7 -5z", back: "M12 3v10l-8 -5z", play: "M4 2v12l9 -6z", pause: "M4 3h3v10h-3zM9 3h3v10h-3z",
  step: "M3 3v10l7 -5zM11 3v10h2v-10z", jump: "M8 2a6 6 0 1 0 .01 0zM8 5a3 3 0 1 1 -.01 0z", last: "M2 3v10l5 -5zM7 3v10l5 -5zM12 3v10h2v-10z",
};

function sign(name) {
  return drawn("svg", { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" },
    drawn("path", { d: SIGNS[name], class: "cw-sign", "fill-rule": "evenodd" }));
}

// Buttons, slider and keys over steps 0 … last. `show(step)` draws; `say(step)` returns the sentence for the live region.
// `stage` is the picture: focus it, and the keys of the buttons work there too.
export function player({ root, stage, show, say, jumps = null, onReset }) {
  let step = 0;
  let last = 0;
  let timer = null;
  const live = element("p", { class: "cw-live", role: "status", "aria-live": "polite" });
  const button = (symbol, label, key, action) =>
    element("button", { type: "button", "aria-label": `${label} (${key})`, title: `${label} (${key})`, onclick: action }, sign(symbol));
  const slider = element("input", { type: "range", min: 0, step: 1, "aria-label": "Step", oninput: () => go(Number(slider.value)) });
  const play = button("play", "Play", "space", () => (timer === null ? start() : stop()));
  const node = element("div", { class: "cw-player" },
    element("div", { class: "cw-buttons", role: "group", "aria-label": "Steps" },
      button("first", "First step", "Home", () => go(0)),
      button("back", "Back", "left arrow", () => go(step - 1)),
      play,
      button("step", "Step", "right arrow", () => go(step + 1)),
      jumps && button("jump", jumps.label, "Page Down", () => go(jumps.next(step))),
      button("last", "Last step", "End", () => go(last)),
      element("button", { type: "button", class: "cw-reset", onclick: () => { stop(); onReset(); } }, "Reset")),
    slider, live);

  function draw(speak) {
    slider.value = step;
    slider.setAttribute("aria-valuetext", `${count(step)} of ${count(last)}`);
    show(step);
    if (speak) live.textContent = say(step); // during play it would never stop talking
  }

  function go(to, playing = false) {
    if (!playing) stop();
    step = Math.max(0, Math.min(last, to));
    draw(!playing);
  }

  function start() {
    if (step === last) step = 0;
    const quiet = still(); // no fast motion: one step, or one event, each second
    const pause = quiet ? 1000 : Math.max(40, Math.min(700, 12000 / (last + 1)));
    const stride = quiet ? Math.ceil(last / 20) : Math.ceil(last / 300);
    const tick = () => {
      go(step + stride, true);
      if (step === last) stop();
    };
    timer = setInterval(tick, pause);
    mark(true);
  }

  function stop() {
    if (timer === null) return;
    clearInterval(timer);
    timer = null;
    mark(false);
    draw(true);
  }

  function mark(playing) {
    play.replaceChildren(sign(playing ? "pause" : "play"));
    const label = `${playing ? "Pause" : "Play"} (space)`;
    play.setAttribute("aria-label", label);
    play.title = label;
  }

  const keys = {
    ArrowRight: () => go(step + 1), ArrowLeft: () => go(step - 1), Home: () => go(0), End: () => go(last),
    " ": () => (timer === null ? start() : stop()),
    ...(jumps && { PageDown: () => go(jumps.next(step)), PageUp: () => go(jumps.previous(step)) }),
  };
  root.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook around us has keys of its own
    const at = event.target;
    const types = at.matches("textarea, select") || (at.matches("input") && at.type !== "checkbox" && at !== slider);
    const presses = event.key === " " && at.matches("button, summary, input[type=checkbox]");
    if (types || presses || event.altKey || event.ctrlKey || event.metaKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  stage.tabIndex = 0;

  return {
    node,
    stop,
    step: () => step,
    // A new stream of steps: show `at` of `steps`.
    load(steps, at) {
      stop();
      last = steps;
      slider.max = last;
      step = Math.max(0, Math.min(last, at));
      draw(true);
    },
  };
}

// The frame of an explorable. JupyterLab leaves the keys inside it alone.
export function frame(el, label) {
  const root = element("section", { class: "cw", "aria-label": label, "data-lm-suppress-shortcuts": "true" });
  el.replaceChildren(root);
  return root;
}

// Calls `draw(width)` now and whenever the width of `node` changes; returns a function that ends it.
export function onWidth(node, draw) {
  let width = 0;
  const observer = new ResizeObserver(() => {
    const now = Math.floor(node.clientWidth);
    if (now && now !== width) draw((width = now));
  });
  observer.observe(node);
  return () => observer.disconnect();
}
