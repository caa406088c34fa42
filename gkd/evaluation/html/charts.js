"use strict";

// Drawing: elements, scales, a frame with axes, and the tip that follows the pointer or the arrow keys.

const charts = (() => {
  const SPACE = "http://www.w3.org/2000/svg";
  const FRAME = { left: 54, right: 14, top: 10, bottom: 44 };

  function element(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  function shape(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SPACE, tag), attributes, children);
  }

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children); // texts become text nodes: names are never read as markup
    return node;
  }

  // The inverse of the normal distribution, to 4.5e-4: far below a pixel.
  // Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), formula 26.2.23.
  function probit(share) {
    if (share > 0.5) return -probit(1 - share);
    if (share <= 0) return -Infinity;
    const t = Math.sqrt(-2 * Math.log(share));
    const above = 2.515517 + t * (0.802853 + t * 0.010328);
    const below = 1 + t * (1.432788 + t * (0.189269 + t * 0.001308));
    return above / below - t;
  }

  // A scale from values to pixels; what lies outside is held at the edge.
  function scale(bend, low, high, start, end) {
    const from = bend(low), to = bend(high);
    const map = value => {
      const share = (bend(value) - from) / (to - from);
      return start + Math.min(1, Math.max(0, share)) * (end - start);
    };
    return { map, low, high, start, end, holds: value => value >= low && value <= high };
  }

  function linearTicks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
    const ticks = [];
    for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-9; place++) ticks.push(place * step);
    return { ticks, digits: Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)) };
  }

  // Ticks as {value, text}; labels that would touch the one before are left out, their lines stay.
  function drawAxes(svg, x, y, xTicks, yTicks, xTitle, yTitle) {
    let last = -Infinity;
    for (const { value, text } of xTicks) {
      const at = x.map(value);
      svg.append(shape("path", { class: "grid", d: `M${at} ${y.start}V${y.end}` }));
      if (at - last < 7 * text.length + 8) continue;
      last = at;
      svg.append(shape("text", { x: at, y: y.start + 17, "text-anchor": "middle" }, text));
    }
    last = Infinity;
    for (const { value, text } of yTicks) {
      const at = y.map(value);
      svg.append(shape("path", { class: "grid", d: `M${x.start} ${at}H${x.end}` }));
      if (last - at < 15) continue;
      last = at;
      svg.append(shape("text", { x: x.start - 7, y: at + 4, "text-anchor": "end" }, text));
    }
    svg.append(shape("path", { class: "axis", d: `M${x.start} ${y.start}H${x.end}` }));
    svg.append(shape("text", { x: (x.start + x.end) / 2, y: y.start + 37, "text-anchor": "middle" }, xTitle));
    if (yTitle) {
      const middle = (y.start + y.end) / 2;
      svg.append(shape("text", { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" }, yTitle));
    }
  }

  // Calls draw(svg, width) now and whenever the width changes, so that texts keep their size on every screen.
  function mount(holder, label, height, draw) {
    holder.classList.add("chart");
    const tip = element("div", { class: "tip", "aria-live": "polite" });
    let width = 0;
    const redraw = () => {
      const now = Math.max(220, Math.round(holder.clientWidth));
      if (now === width) return;
      width = now;
      const tall = typeof height === "function" ? height(width) : height;
      const svg = shape("svg", { viewBox: `0 0 ${width} ${tall}`, role: "img", "aria-label": label });
      holder.replaceChildren(svg, tip);
      hideTip(tip);
      draw(svg, width, tall, tip);
    };
    redraw();
    new ResizeObserver(redraw).observe(holder);
    return () => { width = 0; redraw(); };
  }

  function frame(width, height) {
    return { left: FRAME.left, right: width - FRAME.right, top: FRAME.top, bottom: height - FRAME.bottom };
  }

  function showTip(tip, x, y, lines) {
    tip.replaceChildren(...lines.map(line => element("p", {}, ...line)));
    const room = tip.parentElement.clientWidth;
    tip.style.visibility = "visible";
    tip.style.left = `${x + 14 + tip.offsetWidth > room ? Math.max(0, x - 14 - tip.offsetWidth) : x + 14}px`;
    tip.style.top = `${Math.max(0, y)}px`;
  }

  function hideTip(tip) {
    tip.style.visibility = "hidden";
  }

  function follow(svg, area, show, hide) {
    svg.setAttribute("tabindex", "0");
    const move = event => {
      const box = svg.getBoundingClientRect(), drawn = svg.viewBox.baseVal.width / box.width;
      at = Math.min(area.right, Math.max(area.left, (event.clientX - box.left) * drawn));
      show(at);
    };
    let at = (area.left + area.right) / 2;
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", event => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") hide();
      if (!way) return;
      event.preventDefault();
      at = Math.min(area.right, Math.max(area.left, at + way * 6));
      show(at);
    });
  }

  // A number with fixed digits as Python's formatting rounds it: halves to even, where toFixed takes the larger.
  function fixed(value, digits) {
    const parts = value * 2 ** (digits + 1);
    if (!Number.isInteger(parts) || value < 0) return value.toFixed(digits); // no half lies between two texts
    const scaled = BigInt(parts) * 10n ** BigInt(digits), unit = 2n ** BigInt(digits + 1);
    const down = scaled / unit, twice = 2n * (scaled % unit);
    const rounded = twice > unit || (twice === unit && down % 2n === 1n) ? down + 1n : down;
    const text = String(rounded).padStart(digits + 1, "0");
    return digits ? `${text.slice(0, -digits)}.${text.slice(-digits)}` : text;
  }

  const percentText = (count, total, digits) => fixed(100 * (count / total), digits);
  const countText = count => String(count).replace(/\B(?=(\d{3})+$)/g, ",");
  const colorClass = place => `m${place % 8} d${Math.floor(place / 8) % 4}`;

  function modelMark(place, name) {
    const mark = shape("svg", { class: "swatch", viewBox: "0 0 22 10", "aria-hidden": "true" });
    mark.append(shape("path", { d: "M1 5H21" }));
    return element("span", { class: `model ${colorClass(place)}` }, mark, element("span", { class: "name" }, name));
  }

  return {
    element, shape, probit, scale, linearTicks, drawAxes, mount, frame, showTip, hideTip, follow,
    fixed, percentText, countText, colorClass, modelMark,
  };
})();
