// FlashAttention's forward, tile by tile: what each step moves between HBM and SRAM, in elements of one head.
// The same loops as refimpl.flash_attention.simulator, which a test holds equal. No page in here; all functions are pure.

export const BYTES = 2; // of one element in fp16
export const KEYS_OUTSIDE = "1"; // FlashAttention, algorithm 1: for each K, V tile, all Q tiles
export const QUERIES_OUTSIDE = "2"; // FlashAttention-2: for each Q tile, all K, V tiles

export const elementsOf = (kib) => Math.floor((kib * 1024) / BYTES);

// The paper's choice: B_c = ceil(M / 4d), B_r = min(B_c, d).
export function blockSizes(sramElements, dim) {
  const blockK = Math.ceil(sramElements / (4 * dim));
  return { blockQ: Math.min(blockK, dim), blockK };
}

// What must be on the chip together for one tile step, name -> elements.
export function onChip({ dim, blockQ, blockK }) {
  return { Q: blockQ * dim, K: blockK * dim, V: blockK * dim, O: blockQ * dim, "m, l": 2 * blockQ, S: blockQ * blockK };
}

export const sum = (parts) => Object.values(parts).reduce((a, b) => a + b, 0);

// Rows of tile i: [first, last + 1).
const span = (i, block, n) => [i * block, Math.min(n, (i + 1) * block)];

export function grid({ n, blockQ, blockK }) {
  return { rows: Math.ceil(n / blockQ), columns: Math.ceil(n / blockK) };
}

// For query tile i: `visited` K tiles that hold a visible key; the first `full` of them need no mask.
export function reach(settings, i) {
  const { n, blockQ, blockK, causal } = settings;
  const { columns } = grid(settings);
  if (!causal) return { visited: columns, full: columns };
  const [first, end] = span(i, blockQ, n);
  let full = Math.floor((first + 1) / blockK); // tiles whose last key is at most the first query
  if (first + 1 >= n) full = columns;
  return { visited: Math.ceil(end / blockK), full: Math.min(columns, full) };
}

// The steps in order, one per tile that is visited: {i, j, moves}, moves a list of [read | write, what, elements].
export function* walk(settings) {
  if (settings.algorithm === KEYS_OUTSIDE) yield* walkKeysOutside(settings);
  else yield* walkQueriesOutside(settings);
}

function* walkKeysOutside(settings) {
  const { n, dim, blockQ, blockK } = settings;
  const { rows, columns } = grid(settings);
  for (let j = 0; j < columns; j += 1) {
    const [firstK, endK] = span(j, blockK, n);
    let moves = [["read", `K${sub(j)}, V${sub(j)}`, 2 * dim * (endK - firstK)]];
    for (let i = 0; i < rows; i += 1) {
      if (j >= reach(settings, i).visited) continue; // above the diagonal: never loaded
      const [firstQ, endQ] = span(i, blockQ, n);
      moves.push(["read", `Q${sub(i)}, O${sub(i)}, l${sub(i)}, m${sub(i)}`, (2 * dim + 2) * (endQ - firstQ)]);
      moves.push(["write", `O${sub(i)}, l${sub(i)}, m${sub(i)}`, (dim + 2) * (endQ - firstQ)]);
      yield { i, j, moves };
      moves = [];
    }
  }
}

function* walkQueriesOutside(settings) {
  const { n, dim, blockQ, blockK } = settings;
  const { rows } = grid(settings);
  for (let i = 0; i < rows; i += 1) {
    const [firstQ, endQ] = span(i, blockQ, n);
    let moves = [["read", `Q${sub(i)}`, dim * (endQ - firstQ)]];
    const { visited } = reach(settings, i);
    for (let j = 0; j < visited; j += 1) {
      const [firstK, endK] = span(j, blockK, n);
      moves.push(["read", `K${sub(j)}, V${sub(j)}`, 2 * dim * (endK - firstK)]);
      if (j === visited - 1) moves.push(["write", `O${sub(i)}, lse${sub(i)}`, (dim + 1) * (endQ - firstQ)]);
      yield { i, j, moves };
      moves = [];
    }
  }
}

const sub = (number) => String(number).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);

// All steps with the counters after each: entry 0 is before the start.
export function simulate(settings) {
  const steps = [{ i: -1, j: -1, moves: [], reads: 0, writes: 0 }];
  let reads = 0;
  let writes = 0;
  for (const step of walk(settings)) {
    for (const [way, , elements] of step.moves) {
      if (way === "read") reads += elements;
      else writes += elements;
    }
    steps.push({ ...step, reads, writes });
  }
  return steps;
}

// Algorithm 0, forward, no mask pass: S = QKᵀ, P = softmax(S), O = PV, every tensor moved once per pass.
export function standard({ n, dim }) {
  return { reads: 2 * n * n + 3 * n * dim, writes: 2 * n * n + n * dim };
}

// Tiles by kind, and pairs computed beyond those that the mask needs, as a share of them.
export function tileCounts(settings) {
  const { n, blockQ, blockK, causal } = settings;
  const { rows, columns } = grid(settings);
  let full = 0;
  let loaded = 0;
  let computed = 0;
  for (let i = 0; i < rows; i += 1) {
    const [first, end] = span(i, blockQ, n);
    const row = reach(settings, i);
    full += row.full;
    loaded += row.visited;
    computed += (end - first) * Math.min(n, row.visited * blockK);
  }
  const needed = causal ? (n * (n + 1)) / 2 : n * n;
  return { full, diagonal: loaded - full, skipped: rows * columns - loaded, loaded, computed, needed, waste: computed / needed - 1 };
}

// How many K tiles of query tile i have been visited once `step` is done: they always come first in its row.
export function doneInRow(settings, step, i) {
  const { visited } = reach(settings, i);
  if (step.i < 0) return 0;
  if (settings.algorithm === KEYS_OUTSIDE) return Math.min(visited, i <= step.i ? step.j + 1 : step.j);
  if (i < step.i) return visited;
  return i === step.i ? step.j + 1 : 0;
}
