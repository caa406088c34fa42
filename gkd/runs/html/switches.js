"use strict";

// Which runs are switched on, known to the table, the chips, the curves and the settings alike.

const switches = (() => {
  const data = JSON.parse(document.getElementById("runs-data").textContent);
  const on = new Set(data.on);
  const listeners = [];

  function tell() {
    for (const listener of listeners) listener();
  }

  function set(place, isOn) {
    if (isOn) on.add(place); else on.delete(place);
    tell();
  }

  function setAll(places) {
    on.clear();
    for (const place of places) on.add(place);
    tell();
  }

  return {
    data, set, setAll,
    isOn: place => on.has(place),
    places: () => data.runs.map((_, place) => place).filter(place => on.has(place)),
    listen: listener => { listeners.push(listener); },
  };
})();
