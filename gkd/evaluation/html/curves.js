"use strict";

// The ROC and DET curves of all models on one set, with a mark for each at its threshold.

const curves = (() => {
  const { element, shape, scale, mount, frame, percentText, countText, colorClass, modelMark } = charts;
  const DET_TICKS = [1e-6, 1e-5, 1e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95];
  const HEIGHT = width => Math.round(Math.min(400, Math.max(270, width * 0.68)));

  function show(section, entries) {
    const legend = element("ul", { class: "legend" });
    for (const entry of entries) legend.append(element("li", {}, modelMark(entry.place, entry.name)));
    section.querySelector(".pair").after(legend);
    for (const kind of ["roc", "det"]) {
      const holder = section.querySelector(`[data-chart=${kind}]`);
      mount(holder, curveLabel(kind, entries), HEIGHT, (svg, width, height, tip) => {
        drawCurves(kind, svg, width, height, tip, entries);
      });
    }
  }

  function curveLabel(kind, entries) {
    const names = entries.map(entry => entry.name).join(", ");
    const what = kind === "roc" ? "True accept rate over false accept rate" : "False reject rate over false accept rate";
    return `${what} of ${names}. Arrow keys move a cursor that reads the figures.`;
  }

  function drawCurves(kind, svg, width, height, tip, entries) {
    const area = frame(width, height);
    const axes = kind === "roc" ? rocAxes(area, entries) : detAxes(area, entries);
    charts.drawAxes(svg, axes.x, axes.y, axes.xTicks, axes.yTicks, "False accept rate (FAR)", axes.yTitle);
    for (const entry of entries) {
      svg.append(shape("path", { class: `curve ${colorClass(entry.place)}`, d: stepPath(entry, axes) }));
    }
    for (const entry of entries) {
      const dot = shape("circle", { class: "dot", r: 6 });
      svg.append(shape("g", { class: colorClass(entry.place) }, dot));
      entry.marks.set(kind, { dot, axes });
      moveMark(entry, kind);
    }
    const cross = shape("path", { class: "cross" });
    svg.append(cross);
    charts.follow(svg, area, at => {
      cross.setAttribute("d", `M${at} ${area.top}V${area.bottom}`);
      cross.style.visibility = "visible";
      charts.showTip(tip, at, area.top + 8, readout(at, axes, entries));
    }, () => {
      cross.style.visibility = "hidden";
      charts.hideTip(tip);
    });
  }

  function rocAxes(area, entries) {
    const smallest = Math.min(...entries.map(entry => 1 / entry.numDifferent));
    const x = scale(Math.log10, Math.min(smallest, 0.1) * 0.8, 1, area.left, area.right);
    const atOne = entries.map(entry => entry.trueAccepts[lastAt(entry, 1)] / entry.numSame);
    const span = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1].find(share => share >= (1 - Math.min(...atOne)) * 1.05) ?? 1;
    const y = scale(value => value, 1 - span, 1 + span * 0.02, area.bottom, area.top);
    const { ticks, digits } = charts.linearTicks(1 - span, 1, 5);
    return {
      kind: "roc", x, y,
      xTicks: powers(x.low),
      yTicks: ticks.map(value => ({ value, text: (100 * value).toFixed(Math.max(0, digits - 2)) })),
      yTitle: "True accept rate (TAR), %",
    };
  }

  function powers(low) {
    const ticks = [];
    for (let power = Math.ceil(Math.log10(low)); power <= 0; power++) {
      ticks.push({ value: 10 ** power, text: power === 0 ? "1" : power === -1 ? "0.1" : `1e${power}` });
    }
    return ticks;
  }

  function detAxes(area, entries) {
    const lowest = total => Math.min(...entries.map(entry => 0.8 / entry[total]), 0.05);
    const missed = Math.max(...entries.map(entry => 1 - entry.trueAccepts[lastAt(entry, 1)] / entry.numSame));
    const x = scale(charts.probit, lowest("numDifferent"), 0.6, area.left, area.right);
    const y = scale(charts.probit, lowest("numSame"), Math.min(0.97, Math.max(0.06, missed * 1.4)), area.bottom, area.top);
    const ticks = axis => DET_TICKS.filter(axis.holds).map(value => ({ value, text: detText(value) }));
    return { kind: "det", x, y, xTicks: ticks(x), yTicks: ticks(y), yTitle: "False reject rate, %" };
  }

  const detText = value => `${Number((value * 100).toPrecision(2))}%`;

  const heightAt = (axes, entry, accepts) => {
    const share = accepts / entry.numSame;
    return axes.kind === "roc" ? share : (entry.numSame - accepts) / entry.numSame;
  };

  // The curve as steps: each corner holds until the next one. It begins at one false accept, the least it can tell,
  // with the rise from what is accepted without any.
  function stepPath(entry, axes) {
    const left = falseAccepts => axes.x.map(Math.max(1, falseAccepts) / entry.numDifferent).toFixed(1);
    const top = trueAccepts => axes.y.map(heightAt(axes, entry, trueAccepts)).toFixed(1);
    let path = `M${left(1)} ${top(entry.trueAccepts[0])}`;
    for (let at = 0; at < entry.trueAccepts.length; at++) {
      if (at > 0 && entry.falseAccepts[at] / entry.numDifferent > axes.x.high) break; // beyond the right edge
      path += `V${top(entry.trueAccepts[at])}H${left(entry.falseAccepts[at + 1] ?? entry.numDifferent)}`;
    }
    return path;
  }

  // The last corner with at most so many false accepts; the first one has the least there is.
  function lastAt(entry, falseAccepts) {
    let low = 0, high = entry.falseAccepts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (entry.falseAccepts[middle] <= falseAccepts) low = middle; else high = middle - 1;
    }
    return low;
  }

  function readout(at, axes, entries) {
    const lines = [];
    for (const entry of entries) {
      let low = 0, high = entry.numDifferent;
      while (low < high) { // most false accepts left of the cursor; the scale is monotone
        const middle = Math.ceil((low + high) / 2);
        if (axes.x.map(middle / entry.numDifferent) <= at) low = middle; else high = middle - 1;
      }
      const place = lastAt(entry, Math.max(low, 1));
      const falseAccepts = entry.falseAccepts[place], trueAccepts = entry.trueAccepts[place];
      const rate = axes.kind === "roc"
        ? `TAR ${percentText(trueAccepts, entry.numSame, 2)} %`
        : `FRR ${percentText(entry.numSame - trueAccepts, entry.numSame, 2)} %`;
      const cosine = entry.cosines[place];
      const threshold = cosine > 10000 ? "above all scores" : `cosine ${(cosine / 10000).toFixed(4)}`;
      lines.push([modelMark(entry.place, entry.name)]);
      lines.push([element("b", {}, rate), ` at FAR ${percentText(falseAccepts, entry.numDifferent, 4)} %`]);
      lines.push([element("small", {}, `${countText(falseAccepts)} false accepts, ${threshold}`)]);
    }
    return lines;
  }

  function moveMark(entry, kind) {
    const { dot, axes } = entry.marks.get(kind);
    const far = entry.accepted.different[entry.step] / entry.numDifferent;
    const y = heightAt(axes, entry, entry.accepted.same[entry.step]);
    dot.setAttribute("cx", axes.x.map(far));
    dot.setAttribute("cy", axes.y.map(y));
    dot.classList.toggle("beyond", !axes.x.holds(far) || !axes.y.holds(y));
  }

  function moveMarks(entry) {
    for (const kind of entry.marks.keys()) moveMark(entry, kind);
  }

  return { show, moveMarks };
})();
