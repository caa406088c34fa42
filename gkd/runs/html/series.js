"use strict";

// A run's curve as points: over steps, epochs or hours, smoothed or not.

const series = (() => {
  const { data } = switches;

  // {x, y, raw} of a run's metric, or null where it lacks the metric or the axis. y holds null where nothing finite was logged.
  function read(place, metric, axis, weight) {
    const run = data.runs[place], found = run.curves[metric];
    if (!found) return null;
    const { steps, hours } = run.axes[found[0]];
    const x = axis === "hours" ? hours
      : axis === "epochs" ? run.epochsPerStep && steps.map(step => step * run.epochsPerStep) : steps;
    return x ? { place, x, y: smoothed(found[1], weight), raw: found[1] } : null;
  }

  // The exponential moving average, freed of the pull of its start: weights w^k (1 - w), made to sum to 1.
  function smoothed(values, weight) {
    if (!weight) return values;
    let sum = 0, total = 0;
    return values.map(value => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }

  // The place of the point that is nearest to x among those with a value, -1 where there is none.
  function nearest(curve, x) {
    let low = 0, high = curve.x.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (curve.x[middle] < x) low = middle + 1; else high = middle;
    }
    let best = -1;
    for (const place of [low - 1, low]) {
      if (place < 0 || place >= curve.x.length || curve.y[place] === null) continue;
      if (best < 0 || Math.abs(curve.x[place] - x) < Math.abs(curve.x[best] - x)) best = place;
    }
    return best;
  }

  // The smallest and largest of many numbers, which are too many for arguments of Math.min.
  function extent(lists) {
    let low = Infinity, high = -Infinity;
    for (const list of lists) {
      for (const value of list) {
        if (value === null) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    return low <= high ? [low, high] : null;
  }

  return { read, smoothed, nearest, extent };
})();
