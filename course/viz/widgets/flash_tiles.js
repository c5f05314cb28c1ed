// The tile animator of unit 04: which tiles are loaded, masked, skipped, and what crosses between HBM and SRAM.
import { BYTES, KEYS_OUTSIDE, QUERIES_OUTSIDE, blockSizes, doneInRow, elementsOf, grid, onChip, reach, simulate, standard, sum, tileCounts } from "./flash_tiles_logic.js";
import { bars, bytes, choice, count, drawn, element, field, frame, hatch, kib, onWidth, player, readouts, setOptions, uniqueId } from "./ui.js";

const LENGTHS = [256, 512, 1024, 2048, 4096];
const DIMS = [32, 64, 128];
const BLOCKS = [16, 32, 64, 128, 256, 512];
const SRAM = [12, 24, 48, 96, 192, 227, 384]; // KiB
const MOST_TILES = 256; // a side with more tiles than this is finer than the picture

function render({ model, el }) {
  const begin = { ...model.get("settings") };
  let settings = { ...begin };
  let steps = simulate(settings);
  let side = 300;

  const root = frame(el, "FlashAttention, tile by tile");
  const stripes = uniqueId("stripes");
  const map = element("div", { class: "cw-stage cw-map", role: "group", "aria-label": "Tiles of the score matrix. Arrow keys step, space plays." });
  const event = element("p", { class: "cw-equation" });
  const sram = element("div", { class: "cw-group" });
  const hbm = element("div", { class: "cw-group" });
  const numbers = readouts({
    tile: "tile (query, key)", reads: "HBM reads so far", writes: "HBM writes so far", total: "moved at the end", standard: "standard moves",
    ratio: "standard / this", loaded: "tiles loaded", skipped: "tiles skipped", waste: "computed beyond the mask",
  });
  const pick = (key, number = true) => (value) => change({ [key]: number ? Number(value) : value });
  const controls = {
    algorithm: choice([[QUERIES_OUTSIDE, "version 2: for each Q, all K V"], [KEYS_OUTSIDE, "Algorithm 1: for each K V, all Q"]], settings.algorithm, pick("algorithm", false)),
    n: choice([], 0, pick("n")), dim: choice([], 0, pick("dim")), blockQ: choice([], 0, pick("blockQ")), blockK: choice([], 0, pick("blockK")),
    sramKib: choice([], 0, pick("sramKib")),
    causal: element("input", { type: "checkbox", onchange: () => change({ causal: controls.causal.checked }) }),
  };
  const paper = element("button", { type: "button", title: "B_c = ⌈M/4d⌉, B_r = min(B_c, d)",
    onclick: () => change(blockSizes(elementsOf(settings.sramKib), settings.dim)) }, "Blocks as in the paper");
  const play = player({ root, stage: map, show, say, onReset: () => { settings = { ...begin }; load(null); } });
  root.append(
    element("div", { class: "cw-controls" }, field("loop order", controls.algorithm), field("N", controls.n), field("d", controls.dim),
      field("B_r (queries)", controls.blockQ), field("B_c (keys)", controls.blockK), field("SRAM", controls.sramKib),
      element("label", { class: "cw-check" }, controls.causal, "causal"), paper),
    element("div", { class: "cw-columns" },
      element("div", {}, map, element("p", { class: "cw-hint" }, "Solid: loaded · hatched: loaded, then masked · pale: still to come · dashed: skipped")),
      element("div", {}, sram, hbm)),
    play.node, event, numbers.node,
    element("p", { class: "cw-hint" }, "One head, forward, fp16. S is counted on the chip; the paper's block sizes leave it out. Keys: ← → step · space play · Home, End."));

  function change(some) {
    settings = { ...settings, ...some };
    load(null);
  }

  function load(at) {
    const withOwn = (list, own, unit = "") => [...new Set([...list, own])].sort((a, b) => a - b).map((v) => [v, `${count(v)}${unit}`]);
    controls.algorithm.value = settings.algorithm;
    setOptions(controls.n, withOwn(LENGTHS, settings.n), settings.n);
    setOptions(controls.dim, withOwn(DIMS, settings.dim), settings.dim);
    setOptions(controls.blockQ, withOwn(BLOCKS, settings.blockQ), settings.blockQ);
    setOptions(controls.blockK, withOwn(BLOCKS, settings.blockK), settings.blockK);
    setOptions(controls.sramKib, withOwn(SRAM, settings.sramKib, " KiB"), settings.sramKib);
    controls.causal.checked = settings.causal;
    steps = simulate(settings);
    drawChip();
    play.load(steps.length - 1, at ?? Math.round(0.4 * (steps.length - 1)));
  }

  function drawChip() {
    const parts = onChip(settings);
    const [used, room] = [sum(parts), elementsOf(settings.sramKib)];
    const fits = used <= room;
    const text = `${kib(used * BYTES)} of ${kib(room * BYTES)}: ${fits ? "fits" : "DOES NOT FIT"}`;
    const looks = { Q: "cw-hero", K: "cw-alt", V: "cw-alt cw-second", O: "cw-ink", "m, l": "cw-ink cw-second", S: "cw-stripes" };
    const rows = [{ name: "on the chip at once:", text, bad: !fits, limit: room,
      parts: Object.entries(parts).map(([name, size]) => [looks[name], size, `${name}: ${count(size)} elements`]) }];
    const key = Object.entries(parts).map(([name, size]) => element("li", {}, element("span", { class: looks[name] }), `${name} ${kib(size * BYTES)}`));
    sram.classList.toggle("cw-over", !fits);
    sram.replaceChildren(element("p", { class: "cw-head" }, "SRAM"), ...bars(rows, Math.max(used, room)), element("ul", { class: "cw-key" }, key));
  }

  function drawMoved(step) {
    const [now, end, base] = [steps[step], steps[steps.length - 1], standard(settings)];
    const [total, other] = [end.reads + end.writes, base.reads + base.writes];
    const left = total - now.reads - now.writes;
    const rows = [
      { name: "this, so far:", text: bytes(BYTES * (now.reads + now.writes)), bad: total > other, parts: [["cw-hero", now.reads, "reads"], ["cw-stripes", now.writes, "writes"], ["cw-rest", left, "still to come"]] },
      { name: "standard:", text: bytes(BYTES * other), parts: [["cw-foil", base.reads, "reads"], ["cw-stripes cw-red", base.writes, "writes"]] },
    ];
    hbm.replaceChildren(element("p", { class: "cw-head" }, "Through HBM (solid: reads, hatched: writes, pale: to come)"), ...bars(rows, Math.max(total, other)));
  }

  function show(step) {
    const [now, end, base, tiles] = [steps[step], steps[steps.length - 1], standard(settings), tileCounts(settings)];
    const [total, other] = [end.reads + end.writes, base.reads + base.writes];
    const fits = sum(onChip(settings)) <= elementsOf(settings.sramKib);
    map.replaceChildren(draw(settings, now, side, stripes));
    drawMoved(step);
    event.textContent = step ? now.moves.map(([way, what, size]) => `${way} ${what}: ${bytes(size * BYTES)}`).join(" · ") : "Nothing loaded yet.";
    numbers.write("tile", step ? `${now.i}, ${now.j}` : "none yet");
    numbers.write("reads", bytes(BYTES * now.reads));
    numbers.write("writes", bytes(BYTES * now.writes));
    numbers.write("total", bytes(BYTES * total));
    numbers.write("standard", bytes(BYTES * other));
    numbers.write("ratio", `${(other / total).toFixed(1)} times${total > other ? ": more traffic" : ""}${fits ? "" : ", if it fitted"}`, total > other || !fits);
    numbers.write("loaded", `${count(step)} of ${count(tiles.loaded)}`);
    numbers.write("skipped", `${count(tiles.skipped)} of ${count(tiles.skipped + tiles.loaded)}`);
    numbers.write("waste", `${(100 * tiles.waste).toFixed(0)} %`);
  }

  function say(step) {
    const [now, end] = [steps[step], steps[steps.length - 1]];
    const used = sum(onChip(settings));
    const fit = used <= elementsOf(settings.sramKib) ? "The tiles fit." : `The tiles do not fit: ${kib(used * BYTES)} in ${settings.sramKib} KiB.`;
    const so = `${bytes(BYTES * (now.reads + now.writes))} moved of ${bytes(BYTES * (end.reads + end.writes))}`;
    return step ? `Tile ${count(step)} of ${count(steps.length - 1)}: query tile ${now.i}, key tile ${now.j}. ${so}. ${fit}` : `Before the first of ${count(steps.length - 1)} tiles. ${fit}`;
  }

  const end = onWidth(map, (now) => {
    side = Math.min(now, 420);
    show(play.step());
  });
  load(model.get("step") < 0 ? null : model.get("step"));
  return () => { play.stop(); end(); };
}

// The score matrix, one band per query tile: in each, what is done comes first, then what is to come, then what is skipped.
function draw(settings, now, side, stripes) {
  const { n, blockQ, blockK, causal } = settings;
  const { rows, columns } = grid(settings);
  const margin = 22;
  const scale = (side - margin - 2) / n;
  const at = (position) => margin + scale * Math.min(n, position);
  const [bands, outlines] = [[], []];
  for (let i = 0; i < rows; i += 1) {
    const { visited, full } = reach(settings, i);
    const done = doneInRow(settings, now, i);
    const [top, bottom] = [at(i * blockQ), at((i + 1) * blockQ)];
    const band = (look, from, to, list = bands) => {
      const place = { x: at(from * blockK), y: top, width: at(to * blockK) - at(from * blockK), height: bottom - top };
      if (from < to) list.push(drawn("rect", { ...look, ...place }));
    };
    const skipped = { class: "cw-skipped" };
    band({ class: "cw-hero" }, 0, Math.min(done, full));
    band({ style: `fill:url(#${stripes})` }, Math.min(done, full), done);
    band({ class: "cw-rest" }, done, visited);
    if (columns > 32) band(skipped, visited, columns, outlines); // too fine for an outline each
    else for (let j = visited; j < columns; j += 1) band(skipped, j, j + 1, outlines);
  }
  const fine = Math.max(rows, columns) > MOST_TILES;
  const cuts = fine ? "" : [
    ...Array.from({ length: columns + 1 }, (_, j) => `M${at(j * blockK)} ${margin}V${at(n)}`),
    ...Array.from({ length: rows + 1 }, (_, i) => `M${margin} ${at(i * blockQ)}H${at(n)}`)].join("");
  const here = now.i >= 0 && drawn("rect", { class: "cw-here", x: at(now.j * blockK), y: at(now.i * blockQ),
    width: at((now.j + 1) * blockK) - at(now.j * blockK), height: at((now.i + 1) * blockQ) - at(now.i * blockQ) });
  return drawn("svg", { width: side, height: side, viewBox: `0 0 ${side} ${side}`, "aria-hidden": "true" },
    drawn("defs", {}, hatch(stripes, "var(--cw-amber)", "var(--cw-paper)")),
    ...bands,
    drawn("path", { class: "cw-cuts", d: cuts, style: `stroke-width:${Math.min(1.4, (scale * Math.min(blockQ, blockK)) / 8)}` }),
    ...outlines,
    causal && drawn("path", { class: "cw-diagonal", d: `M${margin} ${margin}L${at(n)} ${at(n)}` }),
    here,
    drawn("text", { x: margin, y: 13 }, "key 0"),
    drawn("text", { x: at(n), y: 13, "text-anchor": "end" }, count(n - 1)),
    drawn("text", { x: 13, y: margin, "text-anchor": "end", transform: `rotate(-90 13 ${margin})` }, "query 0"),
    drawn("text", { x: 13, y: at(n), transform: `rotate(-90 13 ${at(n)})` }, count(n - 1)));
}

export default { render };
