"use strict";

// The table of runs: sorted by a click on a title, filtered by words and state, each run switched on or off.

const table = (() => {
  const { element } = charts;

  function show() {
    const body = document.querySelector("#run-table tbody"), rows = [...body.rows];
    const titles = [...document.querySelectorAll("#run-table thead th")];
    titles.forEach((title, column) => {
      title.querySelector("button").addEventListener("click", () => sortBy(titles, title, column, body, rows));
    });
    addStates(rows);
    const filter = document.getElementById("filter"), state = document.getElementById("state");
    const apply = () => narrow(rows, filter.value, state.value);
    filter.addEventListener("input", apply);
    state.addEventListener("change", apply);
    apply();
    document.getElementById("on-filtered").addEventListener("click", () => {
      switches.setAll(rows.filter(row => !row.hidden).map(placeOf));
    });
    for (const row of rows) {
      row.querySelector("input").addEventListener("change", event => switches.set(placeOf(row), event.target.checked));
    }
    const mirror = () => rows.forEach(row => {
      row.querySelector("input").checked = switches.isOn(placeOf(row));
      row.classList.toggle("is-off", !switches.isOn(placeOf(row)));
    });
    switches.listen(mirror);
    mirror();
  }

  const placeOf = row => Number(row.dataset.run);
  const stateOf = row => row.cells[1].dataset.sort;

  function addStates(rows) {
    const states = [...new Set(rows.map(stateOf))].sort();
    document.getElementById("state").append(...states.map(name => element("option", { value: name }, name)));
  }

  function narrow(rows, text, state) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = !words.every(word => content.includes(word)) || (state !== "" && stateOf(row) !== state);
    }
    const shown = rows.filter(row => !row.hidden).length;
    document.getElementById("counts").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} runs`;
  }

  // Figures start with the largest, texts with the first; what is missing stays at the end.
  function sortBy(titles, title, column, body, rows) {
    const isNumber = title.classList.contains("number");
    const before = title.getAttribute("aria-sort");
    const first = isNumber ? "descending" : "ascending", second = isNumber ? "ascending" : "descending";
    const way = before === first ? second : first;
    titles.forEach(one => one.removeAttribute("aria-sort"));
    title.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const left = a.cells[column].dataset.sort, right = b.cells[column].dataset.sort;
      const isLeft = isKnown(left, isNumber), isRight = isKnown(right, isNumber);
      if (!isLeft || !isRight) return Number(isRight) - Number(isLeft);
      return sign * (isNumber ? left - right : left.localeCompare(right, "en", { numeric: true }));
    };
    body.append(...[...rows].sort(compare));
  }

  const isKnown = (text, isNumber) => text !== "" && (!isNumber || !Number.isNaN(Number(text)));

  return { show };
})();
