"use strict";

// The settings in which the runs that are switched on differ.

const settingTable = (() => {
  const { element, modelMark } = charts;
  const { data } = switches;
  const MAX_COLUMNS = 12;

  function show() {
    switches.listen(draw);
    draw();
  }

  function draw() {
    const holder = document.getElementById("setting-table");
    const on = switches.places(), places = on.slice(0, MAX_COLUMNS);
    const rows = data.settings.filter(setting => differs(places.map(place => setting.texts[setting.places[place]])));
    if (places.length < 2) return holder.replaceChildren(hint("Switch on two runs or more to compare their settings."));
    if (!rows.length) return holder.replaceChildren(hint("The settings of these runs are equal, but for their folders."));
    const head = element("tr", {}, element("th", { scope: "col" }, "Setting"),
      ...places.map(place => element("th", { scope: "col" }, modelMark(place, data.runs[place].name))));
    const body = rows.map(setting => element("tr", {}, element("th", { scope: "row" }, element("span", { class: "name" }, setting.key)),
      ...places.map(place => cell(setting, place, places[0]))));
    const made = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
    const texts = ["Shaded: other than the first run that is switched on."];
    if (on.length > places.length) texts.push(`Shown are the first ${places.length} of the ${on.length} runs that are on.`);
    holder.replaceChildren(hint(texts.join(" ")), element("div", { class: "scroll" }, made));
  }

  // Runs that all lack a key do not differ in it, whether their version or a section that is off is why.
  const isLacking = text => text === "(absent)" || text === "-";
  const differs = texts => new Set(texts).size > 1 && !texts.every(isLacking);

  const hint = text => element("p", { class: "hint" }, text);

  function cell(setting, place, first) {
    const text = setting.texts[setting.places[place]];
    const kinds = ["name"];
    if (isLacking(text)) kinds.push("absent");
    if (setting.places[place] !== setting.places[first]) kinds.push("other");
    return element("td", { class: kinds.join(" ") }, text);
  }

  return { show };
})();
