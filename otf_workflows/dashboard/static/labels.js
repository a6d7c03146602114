// Choosing labels: how many are chosen, and one click for one rerun.
"use strict";
(() => {
  const boxes = (name) => [...document.querySelectorAll(`input[type="checkbox"][name="${name}"]`)];

  function count() {
    for (const place of document.querySelectorAll("[data-count]")) {
      const n = boxes(place.dataset.count).filter((box) => box.checked).length;
      const text = n ? `${n} chosen` : "none chosen";
      if (place.textContent !== text) place.textContent = text;
    }
    for (const button of document.querySelectorAll("[data-needs]")) {
      button.disabled = !boxes(button.dataset.needs).some((box) => box.checked);
    }
  }

  // From one box to another with the shift key, as in a list of mails.
  let last = null;
  document.addEventListener("click", (event) => {
    const box = event.target.closest('.pick input[type="checkbox"]');
    if (!box) return;
    const all = boxes(box.name);
    const from = last && all.indexOf(last);
    if (event.shiftKey && last && from >= 0) {
      const to = all.indexOf(box);
      for (const one of all.slice(Math.min(from, to), Math.max(from, to) + 1)) one.checked = box.checked;
    }
    last = box;
    count();
  });

  document.addEventListener("submit", (event) => {
    const button = event.target.querySelector("[data-once]");
    if (button) setTimeout(() => { button.disabled = true; button.textContent = "Working…"; });
  });

  document.addEventListener("change", () => setTimeout(count));
  document.addEventListener("htmx:after:swap", count);
  window.addEventListener("pageshow", count);
  count();
})();
