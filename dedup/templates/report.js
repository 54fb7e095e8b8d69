"use strict";
// Show only the pairs within the chosen distance, and the fraction of each set at it. The page includes the numbers.
(() => {
  const slider = document.getElementById("threshold");
  const chosen = document.getElementById("threshold-bits");
  document.documentElement.classList.add("scripted");

  function fill(root, field, text) {
    for (const element of root.querySelectorAll(`[data-field="${field}"]`)) element.textContent = text;
  }

  function showSet(section, bits) {
    const steps = JSON.parse(section.dataset.byThreshold);
    const [count, share, interval] = steps[Math.min(bits, steps.length - 1)];
    for (const root of [section, document.getElementById(`row-${section.id}`)]) {
      fill(root, "count", count.toLocaleString("en"));
      fill(root, "share", share);
      fill(root, "interval", interval);
    }
    let shown = 0;
    for (const pair of section.querySelectorAll("[data-distance]")) {
      pair.hidden = Number(pair.dataset.distance) > bits;
      if (!pair.hidden) shown += 1;
    }
    fill(section, "shown", shown.toLocaleString("en"));
  }

  function update() {
    const bits = Number(slider.value);
    chosen.textContent = `${bits} bits`;
    for (const section of document.querySelectorAll("[data-by-threshold]")) showSet(section, bits);
  }

  if (slider) {
    slider.addEventListener("input", update);
    update();
  }
})();
