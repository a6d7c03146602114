// The form of a new campaign: only the recipe of the chosen code, and a place to drop the file.
"use strict";
(() => {
  const form = document.querySelector("[data-draft-form]");
  const code = form && form.querySelector("[data-code]");

  function show() {
    for (const recipe of form.querySelectorAll("[data-recipe]")) {
      recipe.hidden = recipe.dataset.recipe !== code.value;
    }
  }
  if (code) {
    code.addEventListener("change", show);
    show();
  }

  const place = form && form.querySelector("[data-drop]");
  if (place) {
    const input = place.querySelector("input");
    for (const kind of ["dragover", "dragenter"]) {
      place.addEventListener(kind, (event) => { event.preventDefault(); place.classList.add("over"); });
    }
    for (const kind of ["dragleave", "drop"]) {
      place.addEventListener(kind, () => place.classList.remove("over"));
    }
    place.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files.length) input.files = event.dataTransfer.files;
    });
  }

  document.addEventListener("submit", (event) => {
    const button = event.target.querySelector("[data-once]");
    if (button) setTimeout(() => { button.disabled = true; button.textContent = "Working…"; });
  });
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
})();
