"use strict";

// A card for each model on a set: the histogram of its scores, the threshold slider, and the figures there.

const thresholds = (() => {
  const { element, shape, scale, mount, percentText, countText, colorClass, modelMark } = charts;
  const { UNIT, STEPS } = evaluation;
  const BIN = 25; // thousandths of a cosine; the slider's range is made of whole bins
  const THUMB = 18; // pixels, as in the style

  function show(section, entries) {
    const range = sliderRange(entries);
    section.querySelector("[data-cards]").append(...entries.map(entry => card(entry, range)));
  }

  // In thousandths of a cosine, over all scores of the set.
  function sliderRange(entries) {
    const low = UNIT - Math.max(...entries.map(entry => entry.extent[1]));
    const high = UNIT - Math.min(...entries.map(entry => entry.extent[0]));
    return [Math.max(-UNIT, Math.floor((low - 10) / 50) * 50), Math.min(UNIT, Math.ceil((high + 10) / 50) * 50)];
  }

  function card(entry, range) {
    const title = element("h4", {}, modelMark(entry.place, entry.name));
    const key = element("p", { class: "key" },
      element("span", {}, element("i", { class: "is-same" }), "same person"),
      element("span", {}, element("i"), "different persons"));
    const holder = element("div");
    const slider = element("input", {
      type: "range", min: range[0], max: range[1], step: 1, "aria-label": `Threshold of ${entry.name}, cosine`,
    });
    const figures = figureList();
    const box = element("div", { class: `card ${colorClass(entry.place)}` }, title, key, holder, slider,
      shortcuts(entry, step => choose(step)), figures.list);
    let line = null, place = null;

    function choose(step) {
      slider.value = UNIT - step;
      entry.step = UNIT - Number(slider.value); // the slider keeps to its range, outside of which nothing changes
      const text = figures.update(entry);
      slider.setAttribute("aria-valuetext", text);
      if (line) place();
      curves.moveMarks(entry);
    }

    slider.addEventListener("input", () => choose(UNIT - Number(slider.value)));
    choose(entry.step);
    const label = `Histogram of the cosines of ${entry.name}, same and different pairs`;
    requestAnimationFrame(() => mount(holder, label, 190, (svg, width, height) => {
      const x = drawHistogram(svg, width, height, entry, range);
      line = shape("path", { class: "threshold" });
      svg.append(line);
      place = () => line.setAttribute("d", `M${x.map((UNIT - entry.step) / UNIT)} 8V${height - 24}`);
      place();
      // The thumb's centre stays under the line.
      slider.style.marginLeft = `${x.start - THUMB / 2}px`;
      slider.style.width = `${x.end - x.start + THUMB}px`;
    }));
    return box;
  }

  function drawHistogram(svg, width, height, entry, range) {
    const x = scale(value => value, range[0] / UNIT, range[1] / UNIT, 10, width - 10);
    const shares = {
      different: binShares(entry.accepted.different, entry.numDifferent, range),
      same: binShares(entry.accepted.same, entry.numSame, range),
    };
    const y = scale(value => value, 0, Math.max(...shares.same, ...shares.different) * 1.04, height - 24, 8);
    const { ticks, digits } = charts.linearTicks(x.low, x.high, Math.max(3, width / 70));
    for (const value of ticks) {
      svg.append(shape("text", { x: x.map(value), y: height - 7, "text-anchor": "middle" }, value.toFixed(digits)));
    }
    for (const kind of ["different", "same"]) {
      let path = `M${x.start} ${y.start}`;
      shares[kind].forEach((share, bin) => {
        const [from, to] = [bin, bin + 1].map(edge => x.map((range[0] + edge * BIN) / UNIT).toFixed(1));
        path += `L${from} ${y.map(share).toFixed(1)}H${to}`;
      });
      svg.append(shape("path", { class: kind, d: `${path}V${y.start}Z` }));
    }
    svg.append(shape("path", { class: "axis", d: `M${x.start} ${y.start}H${x.end}` }));
    return x;
  }

  // Shares of the pairs with a cosine in each bin of `BIN` thousandths, from the lowest; the last holds both its ends.
  function binShares(accepted, total, range) {
    const above = cosine => (cosine >= range[1] ? 0 : cosine <= -UNIT ? total : accepted[UNIT - cosine]);
    const shares = [];
    for (let low = range[0]; low < range[1]; low += BIN) shares.push((above(low) - above(low + BIN)) / total);
    return shares;
  }

  function shortcuts(entry, choose) {
    const row = element("div", { class: "set-to" }, "Set to");
    const add = (text, step) => {
      const button = element("button", { type: "button" }, text);
      button.addEventListener("click", () => choose(step()));
      row.append(button);
    };
    add("best accuracy", () => entry.best);
    for (const [text, share] of [["FAR 1e-2", 100], ["FAR 1e-3", 1000], ["FAR 1e-4", 10000]]) {
      if (entry.numDifferent >= share) add(text, () => loosest(entry, share));
    }
    return row;
  }

  // The loosest step at which at most one in `share` different pairs is accepted.
  function loosest(entry, share) {
    let step = 0;
    while (step < STEPS && entry.accepted.different[step + 1] * share <= entry.numDifferent) step++;
    return step;
  }

  function figureList() {
    const names = ["threshold", "far", "tar", "accuracy", "false-accepts", "false-rejects"];
    const titles = ["Cosine above", "FAR", "TAR", "Accuracy", "False accepts", "False rejects"];
    const cells = names.map(name => element("dd", { "data-figure": name }));
    const list = element("dl", {}, ...cells.map((cell, i) => element("div", {}, element("dt", {}, titles[i]), cell)));
    return {
      list,
      update(entry) {
        const texts = figureTexts(entry);
        cells.forEach((cell, i) => (cell.textContent = texts[i]));
        cells[0].title = `squared distance below ${(entry.step / 500).toFixed(3)}`;
        return `cosine ${texts[0]}, FAR ${texts[1]}, TAR ${texts[2]}, accuracy ${texts[3]}`;
      },
    };
  }

  function figureTexts({ accepted, step, numSame, numDifferent }) {
    const falseAccepts = accepted.different[step], trueAccepts = accepted.same[step];
    const right = trueAccepts + numDifferent - falseAccepts;
    return [
      ((UNIT - step) / UNIT).toFixed(3),
      `${percentText(falseAccepts, numDifferent, 4)} %`,
      `${percentText(trueAccepts, numSame, 2)} %`,
      `${percentText(right, numSame + numDifferent, 2)} %`,
      countText(falseAccepts),
      countText(numSame - trueAccepts),
    ];
  }

  return { show };
})();
