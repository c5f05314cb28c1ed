// The stepper of unit 03: a stream of scores, the running state (m, l), and the change of unit at each new maximum.
import { PRESETS, fullSoftmax, nextMaximum, parseScores, previousMaximum, ratioToFull, telling, trace, unitChanges } from "./online_softmax_logic.js";
import { count, choice, drawn, element, field, figure, frame, hatch, onWidth, player, readouts, setOptions, uniqueId } from "./ui.js";

const OWN = "your own scores";
const HEIGHT = 210;
const EDGE = { left: 40, right: 14, top: 14, bottom: 26 };

function render({ model, el }) {
  const given = Object.entries(model.get("rows")).map(([key, row]) => [key, parseScores(row).scores]);
  const streams = { ...Object.fromEntries(given), ...PRESETS };
  const begin = model.get("start") in streams ? model.get("start") : Object.keys(streams)[0];
  let name = begin;
  let scores = streams[name];
  let convert = true;
  let states = trace(scores);
  let width = 600;

  const root = frame(el, "Online softmax, step by step");
  const stripes = uniqueId("stripes");
  const stage = element("div", { class: "cw-stage", role: "group", "aria-label": "Scores by key. Arrow keys step, space plays." });
  const equation = element("p", { class: "cw-equation" });
  const box = element("div", { class: "cw-stage" });
  const numbers = readouts({
    key: "keys read", z: "score z", m: "maximum m", factor: "factor e^(m − m′)", l: "sum l", maxima: "new maxima",
    changes: "unit changed", error: "error against full softmax", textbook: "textbook Σ e^z, float32",
  });
  const stream = choice(Object.keys(streams).map((key) => [key, key]), name, (value) => use(value, streams[value]));
  const forget = element("input", { type: "checkbox", onchange: () => { convert = !forget.checked; load(play.step()); } });
  const editor = element("textarea", { rows: 3, spellcheck: "false", "aria-label": "Scores, apart by commas" });
  const problem = element("p", { class: "cw-problem", role: "alert" });
  const apply = () => {
    const parsed = parseScores(editor.value);
    problem.textContent = parsed.problem ? `⚠ ${parsed.problem}` : "";
    if (parsed.scores) use(OWN, parsed.scores);
  };
  const play = player({
    root, stage, show, say, onReset: reset,
    jumps: { label: "Next new maximum", next: (k) => nextMaximum(states, k), previous: (k) => previousMaximum(states, k) },
  });
  root.append(
    element("div", { class: "cw-controls" }, field("scores", stream),
      element("label", { class: "cw-check" }, forget, "forget the conversion")),
    stage, play.node, equation, box,
    element("p", { class: "cw-hint" }, "Solid: held before · hatched: the new term · dashed: what was held, in the old unit"), numbers.node,
    element("details", {}, element("summary", {}, "Edit the scores"), editor,
      element("button", { type: "button", onclick: apply }, "Use these scores"), problem),
    element("p", { class: "cw-hint" }, "Keys: ← → step · Page Down next new maximum · space play · Home, End."));

  function use(newName, newScores) {
    name = newName;
    scores = newScores;
    const names = Object.keys(streams);
    setOptions(stream, (name === OWN ? [...names, OWN] : names).map((key) => [key, key]), name);
    editor.value = scores.join(", ").replaceAll("Infinity", "inf");
    load(null);
  }

  function load(at) {
    states = trace(scores, { convert });
    picture = plot(scores, states, width, stripes);
    stage.replaceChildren(picture.node);
    play.load(scores.length, at ?? telling(states));
  }

  function reset() {
    convert = true;
    forget.checked = false;
    problem.textContent = "";
    use(begin, streams[begin]);
  }

  function error(step) {
    const ratio = ratioToFull(states[step], fullSoftmax(scores, step));
    const off = Math.abs(ratio - 1);
    const words = off > 0.01 ? `sum ${figure(ratio, 2)} times the true one` : off === 0 ? "0" : off.toExponential(1);
    return { words, bad: !(off < 1e-4) };
  }

  function show(step) {
    const state = states[step];
    picture.show(step);
    box.replaceChildren(cashBox(states, step, convert, width, stripes));
    equation.textContent = inNumbers(states, step, convert);
    numbers.write("key", `${count(step)} of ${count(scores.length)}`);
    numbers.write("z", step ? figure(state.z) : "none yet");
    numbers.write("m", figure(state.m));
    numbers.write("factor", step ? figure(state.factor) : "none yet");
    numbers.write("l", figure(state.l));
    numbers.write("maxima", count(state.maxima));
    numbers.write("changes", `${count(unitChanges(state))} times`);
    const off = error(step);
    numbers.write("error", off.words, off.bad);
    numbers.write("textbook", figure(state.textbook), state.textbook === Infinity);
  }

  function say(step) {
    if (!step) return `No key read yet, of ${count(scores.length)}: m is minus infinity, l is 0.`;
    const { z, m, l, factor, isNew } = states[step];
    const changed = isNew && states[step].maxima > 1;
    const how = !isNew ? "m stands still" : changed ? (convert ? `new maximum, the old sum times ${figure(factor)}` : `new maximum, the factor ${figure(factor)} is forgotten`) : "first maximum";
    return `Key ${count(step)} of ${count(scores.length)}: score ${figure(z)}, ${how}. m ${figure(m)}, l ${figure(l)}, error ${error(step).words}.`;
  }

  let picture = plot(scores, states, width, stripes);
  const end = onWidth(root, (now) => {
    width = now;
    load(play.step());
  });
  use(begin, scores);
  return () => { play.stop(); end(); };
}

// l e^(m - m') + e^(z - m') = l', with the numbers of this step.
function inNumbers(states, step, convert) {
  if (!step) return "m = −∞, l = 0";
  const [before, now] = [states[step - 1], states[step]];
  const m = figure(now.m, 2);
  const times = convert ? ` × e^(${figure(before.m, 2)} − ${m})` : "";
  return `l′ = ${figure(before.l)}${times} + e^(${figure(now.z, 2)} − ${m}) = ${figure(now.held)} + ${figure(now.term)} = ${figure(now.l)}`;
}

function plot(scores, states, width, stripes) {
  const finite = scores.filter(Number.isFinite);
  const [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 1];
  const room = (high - low || 1) * 0.06;
  const n = scores.length;
  const wide = width - EDGE.left - EDGE.right;
  const x = (k) => EDGE.left + (wide * (k - 0.5)) / n; // key k, counted from 1
  const tall = HEIGHT - EDGE.top - EDGE.bottom;
  const y = (z) => (z === -Infinity ? HEIGHT - EDGE.bottom : EDGE.top + (tall * (high + room - z)) / (high - low + 2 * room || 1));
  const dot = Math.max(3, Math.min(8, wide / n));
  const marks = scores.map((z, i) => z === -Infinity
    ? `M${x(i + 1) - 3} ${y(z) - 3}l6 6m0 -6l-6 6` // a masked key: a cross on the floor
    : `M${x(i + 1).toFixed(1)} ${y(z).toFixed(1)}h0`);
  const path = (look, size) => drawn("path", { class: look, style: `stroke-width:${size}` });
  const [future, past] = [path("cw-dots cw-future", dot), path("cw-dots", dot)];
  const line = drawn("path", { class: "cw-line" });
  const rings = drawn("g", {});
  const now = drawn("line", { class: "cw-now", y1: EDGE.top - 8, y2: HEIGHT - EDGE.bottom });
  const label = drawn("text", { class: "cw-strong", y: EDGE.top - 2 });
  const text = (at, words, more) => drawn("text", { ...at, ...more }, words);
  const node = drawn("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" },
    drawn("defs", {}, hatch(stripes, "var(--cw-amber)", "var(--cw-paper)")),
    drawn("path", { class: "cw-axis", d: `M${EDGE.left} ${EDGE.top}V${HEIGHT - EDGE.bottom}H${width - EDGE.right}` }),
    text({ x: EDGE.left - 6, y: y(high) + 4 }, figure(high, 1), { "text-anchor": "end" }),
    text({ x: EDGE.left - 6, y: y(low) + 4 }, figure(low, 1), { "text-anchor": "end" }),
    text({ x: x(1), y: HEIGHT - 8 }, "key 1"),
    text({ x: width - EDGE.right, y: HEIGHT - 8 }, `key ${count(n)}`, { "text-anchor": "end" }),
    future, past, line, rings, now, label);

  function show(step) {
    past.setAttribute("d", marks.slice(0, step).join(""));
    future.setAttribute("d", marks.slice(step).join(""));
    const maxima = [];
    for (let k = 1; k <= step; k += 1) if (states[k].isNew) maxima.push(k);
    const stairs = maxima.map((k, i) => `${i ? "V" : `M${x(k)} `}${y(states[k].m)}H${x(maxima[i + 1] ?? step)}`);
    line.setAttribute("d", stairs.join(""));
    rings.replaceChildren(...maxima.map((k) => drawn("circle", { class: "cw-ring", cx: x(k), cy: y(states[k].m), r: Math.max(4, dot / 2 + 1) })));
    now.setAttribute("x1", step ? x(step) : EDGE.left);
    now.setAttribute("x2", step ? x(step) : EDGE.left);
    const right = step > n / 2;
    label.setAttribute("x", (step ? x(step) : EDGE.left) + (right ? -6 : 6));
    label.setAttribute("text-anchor", right ? "end" : "start");
    label.textContent = maxima.length ? `m = ${figure(states[step].m)}` : "no maximum yet";
  }
  return { node, show };
}

// The sum as a bar: what was held before, in the new unit, and the term that arrives; dashed, the old amount.
function cashBox(states, step, convert, width, stripes) {
  const longest = Math.max(...states.map((state) => state.l), 1);
  const tall = 58;
  const wide = (amount) => ((width - 2) * amount) / longest;
  const { held, term, m } = states[step];
  const before = step ? states[step - 1].l : 0;
  const unit = m === -Infinity ? "no unit yet" : `l in units of e^${figure(m, 2)}`;
  return drawn("svg", { width, height: tall, viewBox: `0 0 ${width} ${tall}`, "aria-hidden": "true" },
    drawn("text", { x: 0, y: 12, class: "cw-strong" }, unit),
    drawn("rect", { x: 1, y: 20, height: 30, width: wide(held), class: convert ? "cw-hero" : "cw-foil" }),
    drawn("rect", { x: 1 + wide(held), y: 20, height: 30, width: wide(term), style: `fill:url(#${stripes})`, class: "cw-outline" }),
    drawn("rect", { x: 1, y: 20, height: 30, width: wide(before), class: "cw-ghost" }));
}

export default { render };
