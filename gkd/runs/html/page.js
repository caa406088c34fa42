"use strict";

// The page: its parts, and the switch between light and dark.

(() => {
  table.show();
  curves.show();
  settingTable.show();
  document.getElementById("theme").addEventListener("click", () => {
    const { style } = document.documentElement;
    const isDark = getComputedStyle(document.documentElement).colorScheme === "dark"
      || (!style.colorScheme && matchMedia("(prefers-color-scheme: dark)").matches);
    style.colorScheme = isDark ? "light" : "dark";
  });
})();
