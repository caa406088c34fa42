"use strict";

// The entries as the page uses them: curve points, counts accepted at each step, and the step that is chosen now.

const evaluation = (() => {
  const UNIT = 1000; // thresholds are thousandths of a cosine; step k accepts cosines above 1 - k / 1000
  const STEPS = 2 * UNIT;

  const sums = differences => {
    let total = 0;
    return differences.map(value => (total += value));
  };

  function read(data, entry) {
    const one = data.sets[entry.set], { steps } = entry;
    const isEver = steps.same.length > 0; // opposite embeddings are accepted at no step
    const accepted = { same: new Array(STEPS + 1).fill(0), different: new Array(STEPS + 1).fill(0) };
    for (const kind of ["same", "different"]) {
      let total = 0;
      for (let step = 0; step <= STEPS; step++) accepted[kind][step] = total += steps[kind][step - steps.first] ?? 0;
    }
    return {
      place: entry.model,
      name: data.models[entry.model].name,
      numSame: one.num_same,
      numDifferent: one.num_different,
      falseAccepts: sums(entry.curve.false_accepts),
      trueAccepts: sums(entry.curve.true_accepts),
      cosines: sums(entry.curve.cosines),
      accepted,
      best: entry.start,
      step: entry.start,
      extent: isEver ? [steps.first, steps.first + steps.same.length] : [STEPS, STEPS],
      quality: entry.quality,
      yaw: entry.yaw,
      degraded: entry.degraded ?? {},
      accuracy: entry.accuracy,
      marks: new Map(),
    };
  }

  return { read, UNIT, STEPS };
})();
