// Without this script the page reads the same: it adds values under the pointer, and lets the legend hide series.
(function () {
  "use strict";
  document.documentElement.classList.add("script");
  function list(text) { return text ? text.split(",").map(Number) : []; }
  function wire(entry, root) {
    entry.tabIndex = 0;
    entry.setAttribute("role", "button");
    function toggle() {
      const off = entry.classList.toggle("off");
      entry.setAttribute("aria-pressed", String(off));
      root.querySelectorAll("path[data-g]").forEach(function (path) {
        if (path.dataset.g === entry.dataset.g) { path.classList.toggle("hidden", off); }
      });
    }
    entry.addEventListener("click", toggle);
    entry.addEventListener("keydown", function (event) { if (event.key === "Enter") { toggle(); } });
  }
  document.querySelectorAll(".shared span").forEach(function (entry) { wire(entry, entry.closest("section")); });
  document.querySelectorAll("figure[data-lines]").forEach(function (figure) {
    const svg = figure.querySelector("svg.plot");
    const box = svg.dataset.box.split(" ").map(Number); // left, right, top, bottom, first x, last x
    const lines = Array.from(svg.querySelectorAll("path.l")).map(function (path) {
      return { path: path, name: path.dataset.name, colour: path.dataset.c, x: list(path.dataset.x || svg.dataset.x),
        y: path.dataset.y.split(",") };
    });
    const guide = document.createElementNS(svg.namespaceURI, "line");
    guide.setAttribute("class", "guide hidden");
    guide.setAttribute("y1", box[2]);
    guide.setAttribute("y2", box[3]);
    svg.appendChild(guide);
    const tip = document.createElement("div");
    tip.className = "tip hidden";
    figure.appendChild(tip);
    function leave() { tip.classList.add("hidden"); guide.classList.add("hidden"); }
    function move(event) {
      const rect = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / rect.width;
      const at = (event.clientX - rect.left) * scale;
      const wanted = box[4] + (at - box[0]) / (box[1] - box[0]) * (box[5] - box[4]);
      let nearest = null;
      lines.forEach(function (line) {
        line.x.forEach(function (x) {
          if (nearest === null || Math.abs(x - wanted) < Math.abs(nearest - wanted)) { nearest = x; }
        });
      });
      if (nearest === null || at < box[0] - 8) { leave(); return; }
      tip.textContent = "epoch " + nearest;
      lines.filter(function (line) { return !line.path.classList.contains("hidden"); }).forEach(function (line) {
        const position = line.x.indexOf(nearest);
        if (position < 0 || line.y[position] === "" || tip.childNodes.length > 16) { return; }
        const row = document.createElement("div");
        row.textContent = line.name + ": " + line.y[position];
        tip.appendChild(row);
      });
      const px = box[0] + (nearest - box[4]) / ((box[5] - box[4]) || 1) * (box[1] - box[0]);
      guide.setAttribute("x1", px);
      guide.setAttribute("x2", px);
      guide.classList.remove("hidden");
      tip.classList.remove("hidden");
      const left = px / scale;
      const room = rect.width - tip.offsetWidth;
      tip.style.left = Math.max(0, left + 12 > room ? Math.min(room, left - tip.offsetWidth - 12) : left + 12) + "px";
      tip.style.top = (rect.top - figure.getBoundingClientRect().top + 8) + "px";
    }
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", leave);
    figure.querySelectorAll(".legend span").forEach(function (entry) { wire(entry, figure); });
  });
})();
