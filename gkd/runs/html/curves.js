"use strict";

// The pictures of the curves, a picture a metric, and what chooses and shapes them.

const curves = (() => {
  const { element, shape, scale, mount, frame, colorClass, modelMark } = charts;
  const { data } = switches;
  const MAX_CHARTS = 12, MAX_IN_TIP = 10, MAX_WITH_DOTS = 10, HEIGHT = 300;
  const AXES = { steps: "Step", epochs: "Epoch", hours: "Hours of training" };
  const settings = { axis: "steps", weight: 0, isLogarithmic: false };
  let drawn = [];

  function show() {
    addChoices();
    addChips();
    const metric = document.getElementById("metric"), axis = document.getElementById("axis");
    const slider = document.getElementById("smoothing"), logarithmic = document.getElementById("logarithmic");
    metric.addEventListener("change", () => build(metric.value));
    axis.addEventListener("change", () => change({ axis: axis.value }));
    slider.addEventListener("input", () => {
      document.getElementById("smoothing-text").textContent = Number(slider.value).toFixed(2);
      change({ weight: Number(slider.value) });
    });
    logarithmic.addEventListener("change", () => change({ isLogarithmic: logarithmic.checked }));
    document.getElementById("all-on").addEventListener("click", () => switches.setAll(data.runs.keys()));
    document.getElementById("all-off").addEventListener("click", () => switches.setAll([]));
    switches.listen(redraw);
    build(metric.value);
  }

  function change(changed) {
    Object.assign(settings, changed);
    redraw();
  }

  function redraw() {
    for (const one of drawn) one();
    hint();
  }

  // Whole groups first, then every metric by itself.
  function addChoices() {
    const groups = new Map();
    data.metrics.forEach(({ name }) => {
      const group = name.includes("/") ? name.split("/")[0] : "other";
      groups.set(group, (groups.get(group) ?? 0) + 1);
    });
    const whole = [element("option", { value: "main" }, "the main ones")];
    for (const [group, count] of groups) whole.push(element("option", { value: `group ${group}` }, `${group} (${count})`));
    const single = data.metrics.map(({ name }, place) => element("option", { value: `metric ${place}` }, name));
    document.getElementById("metric").append(
      element("optgroup", { label: "Groups" }, ...whole), element("optgroup", { label: "One metric" }, ...single),
    );
  }

  function chosen(choice) {
    const all = data.metrics.map((_, place) => place);
    if (choice.startsWith("metric ")) return [Number(choice.slice(7))];
    if (!choice.startsWith("group ")) return data.main.length ? data.main : all;
    const group = choice.slice(6);
    return all.filter(place => {
      const { name } = data.metrics[place];
      return (name.includes("/") ? name.split("/")[0] : "other") === group;
    });
  }

  function addChips() {
    const list = document.getElementById("chips");
    const buttons = data.runs.map((run, place) => {
      const button = element("button", { type: "button" }, modelMark(place, run.name));
      button.addEventListener("click", () => switches.set(place, !switches.isOn(place)));
      list.append(element("li", {}, button));
      return button;
    });
    const mirror = () => buttons.forEach((button, place) => button.setAttribute("aria-pressed", switches.isOn(place)));
    switches.listen(mirror);
    mirror();
  }

  function build(choice) {
    const metrics = chosen(choice), shown = metrics.slice(0, MAX_CHARTS);
    const holder = document.getElementById("charts");
    const figures = shown.map(metric => {
      const chart = element("div", { "data-metric": String(metric) });
      return [metric, chart, element("figure", {}, element("figcaption", { class: "name" }, data.metrics[metric].name), chart)];
    });
    holder.replaceChildren(...figures.map(([, , figure]) => figure));
    drawn = figures.map(([metric, chart]) => {
      const label = `${data.metrics[metric].name} of the runs. Arrow keys move a cursor that reads the figures.`;
      return mount(chart, label, HEIGHT, (svg, width, height, tip) => draw(svg, width, height, tip, metric));
    });
    holder.dataset.leftOut = String(metrics.length - shown.length);
    hint();
  }

  function hint() {
    const places = switches.places(), texts = [];
    const leftOut = Number(document.getElementById("charts").dataset.leftOut);
    if (places.length < data.runs.length) texts.push(`${places.length} of ${data.runs.length} runs are switched on.`);
    if (leftOut) texts.push(`${leftOut} more metrics of this group can be chosen by name.`);
    const lacking = places.filter(place => !hasAxis(data.runs[place]));
    if (lacking.length) texts.push(`Not drawn over ${settings.axis}, which they did not log: ${lacking.map(place => data.runs[place].name).join(", ")}.`);
    if (data.runs.some(run => run.axes.some(axis => axis.steps.length >= 60))) texts.push("Of long curves, points are means of neighbours.");
    document.getElementById("curve-hint").textContent = texts.join(" ");
  }

  function hasAxis(run) {
    if (settings.axis === "steps" || !run.axes.length) return true;
    return settings.axis === "epochs" ? run.epochsPerStep !== null : run.axes.some(axis => axis.hours);
  }

  function draw(svg, width, height, tip, metric) {
    const area = frame(width, height);
    const found = switches.places().map(place => series.read(place, metric, settings.axis, settings.weight)).filter(Boolean);
    const xSpan = series.extent(found.map(curve => curve.x)), ySpan = spanned(found);
    if (!xSpan || !ySpan) {
      const text = switches.places().length ? "Nothing to draw for these runs" : "No run is switched on";
      svg.append(shape("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, text));
      return;
    }
    const x = scale(value => value, Math.min(0, xSpan[0]), xSpan[1] > 0 ? xSpan[1] : 1, area.left, area.right);
    const y = scale(settings.isLogarithmic ? Math.log10 : value => value, ...ySpan, area.bottom, area.top);
    charts.drawAxes(svg, x, y, ticks(x.low, x.high, width / 90), settings.isLogarithmic ? powerTicks(y) : ticks(y.low, y.high, 5), AXES[settings.axis], "");
    for (const curve of found) drawCurve(svg, curve, x, y, found.length <= MAX_WITH_DOTS);
    followCursor(svg, area, tip, found, x, y, metric);
  }

  function spanned(found) {
    const both = found.flatMap(curve => (settings.weight ? [curve.y, curve.raw] : [curve.y]));
    const values = settings.isLogarithmic ? both.map(list => list.filter(value => value > 0)) : both;
    const span = series.extent(values);
    if (!span) return null;
    if (settings.isLogarithmic) return [span[0] / 1.06, span[1] * 1.06];
    const pad = (span[1] - span[0]) * 0.05 || Math.abs(span[0]) * 0.05 || 0.5;
    return [span[0] - pad, span[1] + pad];
  }

  function ticks(low, high, count) {
    const found = charts.linearTicks(low, high, count);
    return found.ticks.map(value => ({ value, text: tickText(value, found.digits) }));
  }

  function tickText(value, digits) {
    const size = Math.abs(value);
    if (size >= 1e6) return `${Number((value / 1e6).toPrecision(6))}M`;
    if (size >= 1e4) return `${Number((value / 1e3).toPrecision(6))}k`;
    return digits > 5 ? value.toExponential(1) : value.toFixed(digits);
  }

  function powerTicks(y) {
    const found = [];
    const isWide = y.high / y.low > 1e4;
    for (let power = Math.floor(Math.log10(y.low)); power <= Math.log10(y.high); power++) {
      for (const factor of isWide ? [1] : [1, 2, 5]) {
        const value = factor * 10 ** power;
        if (y.holds(value)) found.push({ value, text: value >= 1e4 || value < 1e-3 ? value.toExponential(0) : String(Number(value.toPrecision(2))) });
      }
    }
    return found.length > 2 ? found : ticks(y.low, y.high, 4).filter(tick => tick.value > 0);
  }

  function drawCurve(svg, curve, x, y, hasDots) {
    const group = shape("g", { class: colorClass(curve.place), "data-run": String(curve.place) });
    if (settings.weight) group.append(shape("path", { class: "curve raw", d: path(curve.x, curve.raw, x, y) }));
    group.append(shape("path", { class: "curve", d: path(curve.x, curve.y, x, y) }));
    if (hasDots && curve.x.length < 30) {
      curve.y.forEach((value, place) => {
        if (isDrawn(value)) group.append(shape("circle", { class: "dot", r: 3.2, "stroke-width": 1, cx: x.map(curve.x[place]), cy: y.map(value) }));
      });
    }
    svg.append(group);
  }

  const isDrawn = value => value !== null && (!settings.isLogarithmic || value > 0);

  // A value that cannot be drawn leaves a gap; a point alone between two gaps gets a short stroke.
  function path(xs, ys, x, y) {
    const parts = [];
    let isOpen = false;
    for (let place = 0; place < xs.length; place++) {
      if (!isDrawn(ys[place])) { isOpen = false; continue; }
      const at = `${x.map(xs[place]).toFixed(1)} ${y.map(ys[place]).toFixed(1)}`;
      parts.push(isOpen ? `L${at}` : `M${at}h.1`);
      isOpen = true;
    }
    return parts.join("");
  }

  function followCursor(svg, area, tip, found, x, y, metric) {
    const cross = shape("path", { class: "cross" }), dots = shape("g");
    svg.append(cross, dots);
    charts.follow(svg, area, at => {
      const value = x.low + ((at - x.start) / (x.end - x.start)) * (x.high - x.low);
      const read = readings(found, value, metric);
      cross.setAttribute("d", `M${at} ${area.top}V${area.bottom}`);
      cross.style.visibility = "visible";
      dots.replaceChildren(...read.map(({ curve, place }) => shape("g", { class: colorClass(curve.place) },
        shape("circle", { class: "dot", r: 4.5, cx: x.map(curve.x[place]), cy: y.map(curve.y[place]) }))));
      charts.showTip(tip, at, area.top + 4, tipLines(read, value));
    }, () => {
      cross.style.visibility = "hidden";
      dots.replaceChildren();
      charts.hideTip(tip);
    });
  }

  // The runs' points that are nearest to x, the best one first; a run that ended before is left out.
  function readings(found, value, metric) {
    const read = [];
    for (const curve of found) {
      const place = series.nearest(curve, value), last = curve.x[curve.x.length - 1];
      const step = last / Math.max(1, curve.x.length - 1);
      if (place >= 0 && isDrawn(curve.y[place]) && value <= last + step / 2 + 1e-9) read.push({ curve, place });
    }
    const sign = data.metrics[metric].better === "low" ? 1 : -1;
    return read.sort((a, b) => sign * (a.curve.y[a.place] - b.curve.y[b.place]));
  }

  function tipLines(read, value) {
    const title = `${AXES[settings.axis]} ${settings.axis === "steps" ? charts.countText(Math.round(value)) : value.toFixed(2)}`;
    const lines = read.slice(0, MAX_IN_TIP).map(({ curve, place }) => [
      modelMark(curve.place, data.runs[curve.place].name),
      element("b", {}, valueText(curve, place)),
    ]);
    if (read.length > MAX_IN_TIP) lines.push([element("small", {}, `and ${read.length - MAX_IN_TIP} more runs`)]);
    return [[element("small", {}, title)], ...lines];
  }

  function valueText(curve, place) {
    const text = numberText(curve.y[place]);
    return settings.weight && curve.raw[place] !== null ? `${text} (${numberText(curve.raw[place])})` : text;
  }

  const numberText = value => (Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-4) ? value.toExponential(3) : String(Number(value.toPrecision(5))));

  return { show };
})();
