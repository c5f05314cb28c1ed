// The one-pass softmax sum, key by key: what the stepper shows, without a page. All functions are pure.
//
// The state after k keys is (m, l): the largest score, and the sum of exp(score - m). Sums are rounded to float32 after
// every operation, as a kernel would; the sum they are compared with is computed in float64, in two passes.

const round32 = Math.fround;

// Made-up streams whose point can be seen in a dozen steps. Rows of a real model come from Python.
export const PRESETS = {
  random: [0.3, -1.2, 1.1, -0.4, 0.9, 1.8, -2.0, 0.2, 1.5, 2.6, -0.7, 1.0, 0.1, -1.5, 2.2, 0.6],
  "sorted up": [-2.0, -1.5, -1.2, -0.7, -0.4, 0.1, 0.2, 0.3, 0.6, 0.9, 1.0, 1.1, 1.5, 1.8, 2.2, 2.6],
  "sorted down": [2.6, 2.2, 1.8, 1.5, 1.1, 1.0, 0.9, 0.6, 0.3, 0.2, 0.1, -0.4, -0.7, -1.2, -1.5, -2.0],
  "sink first": [4.5, -0.4, 0.9, -1.2, 1.1, 0.3, -2.0, 0.2, 1.5, 1.8, -0.7, 1.0, 0.1, -1.5, 2.2, 0.6],
  "too large for exp": [86, 84.5, 87, 88, 85, 90, 91.5, 89],
  "first keys masked": [-Infinity, -Infinity, 1.0, 0.2, 1.7, -Infinity, 0.4, 2.1],
};

export const MOST_SCORES = 4096; // a longer stream says nothing new and slows the page

// The numbers in `text`, apart by commas, blanks or lines; "-inf" is a masked key. {scores} or {problem}.
export function parseScores(text) {
  const words = text.split(/[\s,;]+/).filter(Boolean);
  if (!words.length) return { problem: "No score given. Write numbers such as 1, 3, 2, 4." };
  if (words.length > MOST_SCORES) return { problem: `${words.length} scores; at most ${MOST_SCORES} are drawn.` };
  const scores = words.map((word) => (/^[-−]inf(inity)?$/i.test(word) ? -Infinity : Number(word.replace("−", "-"))));
  const bad = scores.findIndex((score) => Number.isNaN(score) || score === Infinity);
  if (bad >= 0) return { problem: `“${words[bad]}” (number ${bad + 1}) is no score. Write numbers, or -inf for a masked key.` };
  return { scores };
}

// What to subtract before exp: m, but 0 where m is -inf, since -inf - (-inf) is NaN.
export const pivot = (m) => (m === -Infinity ? 0 : m);

// The state after 0, 1, … n keys. Entry k: m, l; how it came about: score z, factor exp(m - m') on the old sum, the new
// term exp(z - m'); `maxima` seen so far; `textbook`, the sum of exp(z) with nothing subtracted.
// convert = false forgets the factor: the slip of the slides.
export function trace(scores, { convert = true } = {}) {
  const states = [{ m: -Infinity, l: 0, z: null, factor: 1, term: 0, held: 0, maxima: 0, textbook: 0, isNew: false }];
  for (const score of scores) {
    const before = states[states.length - 1];
    const z = round32(score);
    const m = Math.max(before.m, z);
    const factor = round32(Math.exp(before.m - pivot(m)));
    const term = round32(Math.exp(z - pivot(m)));
    const held = convert ? round32(before.l * factor) : before.l;
    const isNew = m > before.m;
    states.push({
      m, z, factor, term, held, isNew, l: round32(held + term), maxima: before.maxima + isNew,
      textbook: round32(before.textbook + round32(Math.exp(z))),
    });
  }
  return states;
}

// Conversions so far: each new maximum after the first changes the unit of a sum that already holds something.
export const unitChanges = (state) => Math.max(0, state.maxima - 1);

// Full softmax of the first `count` scores: {m, l} in float64, the maximum first, then the sum.
export function fullSoftmax(scores, count) {
  let m = -Infinity;
  for (let i = 0; i < count; i += 1) m = Math.max(m, round32(scores[i]));
  let l = 0;
  for (let i = 0; i < count; i += 1) l += Math.exp(round32(scores[i]) - pivot(m));
  return { m, l };
}

// l exp(m) of the stream over that of the full softmax: 1 where it is exact, 1 also where no visible key has come.
export function ratioToFull(state, full) {
  return full.l === 0 && state.l === 0 ? 1 : (state.l / full.l) * Math.exp(pivot(state.m) - pivot(full.m));
}

// Number of keys read at the next new maximum after `step`, or at the last one before it; `step` itself if there is none.
export function nextMaximum(states, step) {
  for (let k = step + 1; k < states.length; k += 1) if (states[k].isNew) return k;
  return step;
}

export function previousMaximum(states, step) {
  for (let k = step - 1; k > 0; k -= 1) if (states[k].isNew) return k;
  return step;
}

// A first view with something to see: the step at which the conversion takes most off the sum.
export function telling(states) {
  let best = Math.min(4, states.length - 1);
  let most = 0;
  for (let k = 1; k < states.length; k += 1) {
    const shrunk = states[k - 1].l * (1 - states[k].factor);
    if (shrunk > most) [best, most] = [k, shrunk];
  }
  return best;
}
