"use strict";

// The page: its data, the sets, accuracy in bins, the costs, and the switch between light and dark.

(() => {
  const { element, shape, scale, mount, frame, percentText, countText, colorClass, modelMark } = charts;
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const entries = data.entries.map(entry => ({ set: entry.set, ...evaluation.read(data, entry) }));
  const COSTS = [
    ["num_parameters", "Parameters, millions", 1e6, "M parameters"],
    ["gmacs", "GMACs", 1, "GMACs"],
    ["file_bytes", "File size, MB", 1e6, "MB"],
    ["images_per_second", "Images per second", 1, "images/s"],
  ];

  for (const section of document.querySelectorAll("section.set")) {
    const found = entries.filter(entry => entry.set === Number(section.dataset.set));
    if (!found.length) continue;
    curves.show(section, found);
    thresholds.show(section, found);
    for (const kind of ["quality", "yaw"]) {
      const holder = section.querySelector(`[data-chart=${kind}]`);
      const known = found.filter(entry => entry[kind]);
      if (holder && known.length) showBins(holder, kind, known);
    }
    for (const holder of section.querySelectorAll("[data-degradation]")) {
      const name = holder.dataset.degradation;
      showDegraded(holder, name, found.filter(entry => Object.hasOwn(entry.degraded, name)));
    }
  }
  const pareto = document.querySelector("[data-chart=pareto]");
  if (pareto) showPareto(pareto);
  document.getElementById("theme").addEventListener("click", () => {
    const { style } = document.documentElement;
    const isDark = getComputedStyle(document.documentElement).colorScheme === "dark"
      || (!style.colorScheme && matchMedia("(prefers-color-scheme: dark)").matches);
    style.colorScheme = isDark ? "light" : "dark";
  });

  function spanned(values, room) {
    const low = Math.min(...values), high = Math.max(...values), pad = Math.max((high - low) * room, 0.002);
    return [Math.max(0, low - pad), Math.min(1, high + pad)];
  }

  function percentTicks(low, high) {
    const { ticks, digits } = charts.linearTicks(100 * low, 100 * high, 5);
    return ticks.map(value => ({ value: value / 100, text: value.toFixed(digits) }));
  }

  function showBins(holder, kind, known) {
    const numBins = 1 + Math.max(...known.flatMap(entry => entry[kind].map(one => one.bin)));
    const spans = [];
    for (const entry of known) for (const one of entry[kind]) spans[one.bin] ??= one.span;
    const label = `Accuracy by ${kind} of ${known.map(entry => entry.name).join(", ")}, with 95 % intervals`;
    mount(holder, label, 300, (svg, width, height, tip) => {
      const area = frame(width, height);
      const x = scale(value => value, -0.5, numBins - 0.5, area.left, area.right);
      const y = scale(value => value, ...spanned(known.flatMap(e => e[kind].flatMap(one => one.interval)), 0.05), area.bottom, area.top);
      const names = spans.map((span, bin) => ({
        value: bin, text: kind === "yaw" ? `${span[0]}–${span[1]}` : bin === 0 ? "worst" : bin === numBins - 1 ? "best" : "",
      })).filter(Boolean);
      const xTitle = kind === "yaw" ? "Absolute yaw, degrees" : "Quality of the pair";
      charts.drawAxes(svg, x, y, names, percentTicks(y.low, y.high), xTitle, "Accuracy, %");
      known.forEach((entry, order) => drawBins(svg, entry, kind, x, y, (order - (known.length - 1) / 2) * 7));
      charts.follow(svg, area, at => {
        const bin = Math.min(numBins - 1, Math.max(0, Math.round((at - area.left) / (area.right - area.left) * numBins - 0.5)));
        charts.showTip(tip, x.map(bin), area.top + 8, binLines(known, kind, bin));
      }, () => charts.hideTip(tip));
    });
  }

  function drawBins(svg, entry, kind, x, y, shift) {
    const group = shape("g", { class: colorClass(entry.place) });
    const points = entry[kind].map(one => [x.map(one.bin) + shift, y.map(one.right / one.total), one]);
    group.append(shape("path", { class: "curve", d: `M${points.map(point => `${point[0]} ${point[1]}`).join("L")}` }));
    for (const [left, top, one] of points) {
      group.append(shape("path", { class: "whisker", d: `M${left} ${y.map(one.interval[0])}V${y.map(one.interval[1])}` }));
      group.append(shape("circle", { class: "dot", r: 4.5, cx: left, cy: top }));
    }
    svg.append(group);
  }

  function binLines(known, kind, bin) {
    return known.flatMap(entry => {
      const one = entry[kind].find(found => found.bin === bin);
      if (!one) return [];
      const [low, high] = one.interval.map(end => (100 * end).toFixed(1));
      return [
        [modelMark(entry.place, entry.name)],
        [element("b", {}, `${percentText(one.right, one.total, 2)} %`), ` (${low} – ${high})`],
        [element("small", {}, `${countText(one.right)} of ${countText(one.total)} pairs, ${kind} ${one.span[0]} to ${one.span[1]}`)],
      ];
    });
  }

  // Levels stand at equal distances, in the order in which the models have them.
  function showDegraded(holder, name, known) {
    const levels = [...new Set(known.flatMap(entry => entry.degraded[name].points.map(([level]) => level)))];
    const label = `Accuracy under ${name} of ${known.map(entry => entry.name).join(", ")}, with deviations over the folds`;
    mount(holder, label, 260, (svg, width, height, tip) => {
      const area = frame(width, height);
      const ends = known.flatMap(entry => entry.degraded[name].points.flatMap(([, value, std]) => [value - std, value + std]));
      const x = scale(value => value, -0.5, levels.length - 0.5, area.left, area.right);
      const y = scale(value => value, ...spanned(ends, 0.05), area.bottom, area.top);
      const names = levels.map((level, place) => ({ value: place, text: level === null ? "none" : String(level) }));
      charts.drawAxes(svg, x, y, names, percentTicks(y.low, y.high), known[0].degraded[name].unit, "Accuracy, %");
      known.forEach((entry, order) => {
        const bins = entry.degraded[name].points.map(([level, value, std]) =>
          ({ bin: levels.indexOf(level), right: value, total: 1, interval: [Math.max(0, value - std), Math.min(1, value + std)] }));
        drawBins(svg, { place: entry.place, bins }, "bins", x, y, (order - (known.length - 1) / 2) * 5);
      });
      charts.follow(svg, area, at => {
        const place = Math.min(levels.length - 1, Math.max(0, Math.round((at - area.left) / (area.right - area.left) * levels.length - 0.5)));
        charts.showTip(tip, x.map(place), area.top + 8, degradedLines(known, name, levels[place]));
      }, () => charts.hideTip(tip));
    });
  }

  function degradedLines(known, name, wanted) {
    return known.flatMap(entry => {
      const point = entry.degraded[name].points.find(([level]) => level === wanted);
      if (!point) return [];
      const [value, std] = point.slice(1).map(share => (100 * share).toFixed(2));
      return [[modelMark(entry.place, entry.name)], [element("b", {}, `${value} %`), ` ± ${std}`]];
    });
  }

  function showPareto(figure) {
    const known = COSTS.filter(([key]) => data.models.some(model => key in model.costs));
    const measured = entries.filter(entry => entry.accuracy !== undefined);
    if (!known.length || !measured.length) return figure.remove();
    const cost = chooser("Cost", known.map(([key, title]) => [key, title]));
    const sets = data.sets.map((one, place) => [String(place), one.name]);
    const over = chooser("Accuracy on", sets.length > 1 ? [["all", "all sets, mean"], ...sets] : sets);
    const holder = element("div"), hint = element("p", { class: "hint" });
    figure.append(
      element("figcaption", { class: "unseen" }, "Accuracy over cost"),
      element("div", { class: "chooser" }, cost.label, over.label), holder, hint,
    );
    const redraw = mount(holder, "Accuracy over cost of each model, with the Pareto front", 380, (svg, width, height, tip) => {
      const [key, title, unit, unitName] = known.find(one => one[0] === cost.select.value);
      const points = paretoPoints(key, unit, over.select.value, measured);
      const missing = data.models.filter((_, place) => !points.some(point => point.place === place));
      hint.textContent = "Line: the Pareto front, the models that no other beats in both."
        + (missing.length ? ` Not shown, since a figure is not known: ${missing.map(model => model.name).join(", ")}.` : "");
      if (points.length) drawPareto(svg, width, height, tip, points, key, title, unitName);
    });
    for (const one of [cost, over]) one.select.addEventListener("change", redraw);
  }

  function chooser(text, options) {
    const select = element("select", {}, ...options.map(([value, name]) => element("option", { value }, name)));
    return { select, label: element("label", {}, text, select) };
  }

  function paretoPoints(key, unit, over, measured) {
    const wanted = over === "all" ? data.sets.map((_, place) => place) : [Number(over)];
    return data.models.flatMap((model, place) => {
      const found = measured.filter(entry => entry.place === place && wanted.includes(entry.set));
      if (!(key in model.costs) || found.length < wanted.length) return [];
      const accuracy = found.reduce((total, entry) => total + entry.accuracy, 0) / found.length;
      return [{ place, name: model.name, cost: model.costs[key] / unit, accuracy }];
    });
  }

  // The points that no other is at least as good as in both, and better in one; from the cheapest.
  function front(points, isMoreBetter) {
    const price = point => (isMoreBetter ? -point.cost : point.cost);
    const beats = (a, b) => price(a) <= price(b) && a.accuracy >= b.accuracy && (price(a) < price(b) || a.accuracy > b.accuracy);
    return points.filter(one => !points.some(other => beats(other, one))).sort((a, b) => price(a) - price(b));
  }

  function drawPareto(svg, width, height, tip, points, key, title, unitName) {
    const area = frame(width, height);
    const costs = points.map(point => point.cost), low = Math.min(...costs), high = Math.max(...costs);
    const isWide = high / low > 8;
    const x = isWide
      ? scale(Math.log10, low / 1.6, high * 1.9, area.left, area.right)
      : scale(value => value, Math.max(0, low - (high - low || low) * 0.2), high + (high - low || high) * 0.3, area.left, area.right);
    const y = scale(value => value, ...spanned(points.map(point => point.accuracy), 0.25), area.bottom, area.top);
    charts.drawAxes(svg, x, y, isWide ? roundTicks(x) : plainTicks(x), percentTicks(y.low, y.high), isWide ? `${title} (logarithmic)` : title, "Accuracy, %");
    const best = front(points, key === "images_per_second");
    svg.append(shape("path", { class: "front", d: `M${best.map(one => `${x.map(one.cost)} ${y.map(one.accuracy)}`).join("L")}` }));
    const placed = [];
    for (const point of [...points].sort((a, b) => b.accuracy - a.accuracy)) {
      drawPoint(svg, point, x.map(point.cost), y.map(point.accuracy), area, placed);
    }
    charts.follow(svg, area, at => {
      const near = points.reduce((a, b) => (Math.abs(x.map(b.cost) - at) < Math.abs(x.map(a.cost) - at) ? b : a));
      charts.showTip(tip, x.map(near.cost), y.map(near.accuracy) + 14, [
        [modelMark(near.place, near.name)],
        [element("b", {}, `${charts.fixed(100 * near.accuracy, 2)} %`), ` at ${Number(near.cost.toPrecision(4))} ${unitName}`],
      ]);
    }, () => charts.hideTip(tip));
  }

  // A point with its name beside it, moved up or down until it touches no other name or point drawn before.
  function drawPoint(svg, point, left, top, area, placed) {
    const shown = point.name.length > 26 ? `${point.name.slice(0, 25)}…` : point.name;
    const wide = shown.length * 6.7, isRight = left + 12 + wide < area.right;
    const from = isRight ? left + 12 : left - 12 - wide;
    const touches = at => placed.some(box => from < box.to && from + wide > box.from && Math.abs(at - box.at) < 15);
    const at = [0, 15, -15, 30, -30, 45, -45].map(shift => top + shift).find(place => !touches(place)) ?? top;
    placed.push({ from, to: from + wide, at }, { from: left - 7, to: left + 7, at: top });
    const group = shape("g", { class: colorClass(point.place) }, shape("circle", { class: "dot", r: 7, cx: left, cy: top }));
    const anchor = isRight ? "start" : "end";
    group.append(shape("text", { class: "label name", x: isRight ? from : left - 12, y: at + 4, "text-anchor": anchor }, shown));
    svg.append(group);
  }

  function roundTicks(x) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(x.low)); power <= Math.log10(x.high); power++) {
      for (const factor of [1, 2, 5]) {
        const value = factor * 10 ** power;
        if (x.holds(value)) ticks.push({ value, text: String(Number(value.toPrecision(2))) });
      }
    }
    return ticks;
  }

  function plainTicks(x) {
    const { ticks, digits } = charts.linearTicks(x.low, x.high, 6);
    return ticks.map(value => ({ value, text: value.toFixed(digits) }));
  }
})();
