// Structures and trajectories in 3D. A figure with data-structure names an address that answers
// extended XYZ (one structure) or JSON with thinned, wrapped frames (a trajectory, data-player).
"use strict";
(() => {
  const FRAME_MS = 90;
  const ROOM = 1.18; // 3Dmol leaves room for labels that we do not draw
  const MAX_STICKS = 600; // beyond this many atoms bonds cost more than they tell
  const fixed = (x) => Number(x).toFixed(4);

  // -- what the server sends ---------------------------------------------------------------------

  function fromXyz(text) {
    const lines = text.split("\n");
    const n = Number(lines[0]);
    const lattice = /Lattice="([^"]+)"/.exec(lines[1] || "");
    const atoms = lines.slice(2, 2 + n).map((line) => line.trim().split(/\s+/));
    return {
      symbols: atoms.map((atom) => atom[0]),
      frames: [{
        cell: lattice ? lattice[1].trim().split(/\s+/).map(Number) : null,
        positions: atoms.flatMap((atom) => atom.slice(1, 4).map(Number)),
      }],
    };
  }

  // 3Dmol takes columns beyond the third for displacements, so there are none; its own frames share
  // one cell, so each of ours is a model of its own.
  function toXyz(symbols, frame) {
    const p = frame.positions;
    const rows = symbols.map((s, i) => `${s} ${fixed(p[3 * i])} ${fixed(p[3 * i + 1])} ${fixed(p[3 * i + 2])}`);
    const lattice = frame.cell ? `Lattice="${frame.cell.map(fixed).join(" ")}"` : "";
    return `${symbols.length}\n${lattice}\n${rows.join("\n")}\n`;
  }

  async function fetched(address) {
    const answer = await fetch(address);
    const text = await answer.text();
    if (!answer.ok) {
      const page = new DOMParser().parseFromString(text, "text/html");
      const said = page.querySelector("[role=alert]");
      throw new Error(said ? said.textContent.trim() : `no data (${answer.status})`);
    }
    return text.startsWith("{") ? JSON.parse(text) : fromXyz(text);
  }

  // -- drawing -----------------------------------------------------------------------------------

  function show(viewer, data, index) {
    const frame = data.frames[index];
    const sticks = data.symbols.length <= MAX_STICKS;
    viewer.removeAllModels();
    viewer.removeAllShapes();
    const model = viewer.addModel(toXyz(data.symbols, frame), "xyz", { assignBonds: sticks });
    model.setStyle({}, {
      sphere: { scale: sticks ? 0.28 : 0.45, colorscheme: "Jmol" },
      ...(sticks ? { stick: { radius: 0.09, colorscheme: "Jmol" } } : {}),
    });
    if (frame.cell) {
      const edge = otf.colour("--soft") || "gray";
      viewer.addUnitCell(model, { box: { color: edge }, alabel: "", blabel: "", clabel: "",
        astyle: { hidden: true }, bstyle: { hidden: true }, cstyle: { hidden: true } });
    }
  }

  function legend(symbols) {
    const list = document.createElement("ul");
    list.className = "elements";
    const counts = new Map();
    for (const symbol of symbols) counts.set(symbol, (counts.get(symbol) || 0) + 1);
    for (const [symbol, n] of counts) {
      const item = document.createElement("li");
      const dot = document.createElement("span");
      const colour = $3Dmol.elementColors.Jmol[symbol] ?? 0x888888;
      dot.style.background = `#${colour.toString(16).padStart(6, "0")}`;
      item.append(dot, `${symbol} `, Object.assign(document.createElement("small"), { textContent: n }));
      list.append(item);
    }
    return list;
  }

  async function draw(figure) {
    const area = figure.querySelector(".structure-area");
    try {
      const [data] = await Promise.all([fetched(figure.dataset.structure), otf.library("3dmol")]);
      if (!area.isConnected) return;
      area.textContent = "";
      const viewer = $3Dmol.createViewer(area, { backgroundAlpha: 0, antialias: true });
      if (!viewer) throw new Error("this browser has no WebGL");
      const start = figure.hasAttribute("data-player") ? Math.min(figure.startFrame || 0, data.frames.length - 1) : 0;
      show(viewer, data, start);
      viewer.zoomTo();
      viewer.rotate(-70, "x");
      viewer.rotate(20, "y");
      viewer.zoom(Math.min(ROOM, (1.15 * area.clientWidth) / area.clientHeight));
      viewer.render();
      for (const old of figure.querySelectorAll(".elements, .player")) old.remove();
      figure.append(legend(data.symbols));
      figure.viewer = viewer;
      figure.redraw = () => { show(viewer, data, figure.frame || 0); viewer.render(); };
      if (figure.hasAttribute("data-player")) player(figure, viewer, data, start);
      figure.dataset.drawn3d = "yes";
    } catch (error) {
      area.textContent = "";
      const words = Object.assign(document.createElement("p"), { className: "waiting" });
      words.textContent = `No 3D view: ${error.message}`;
      area.append(words);
    }
  }

  // -- player ------------------------------------------------------------------------------------

  function button(text, label, act) {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    made.setAttribute("aria-label", label);
    made.title = label;
    made.addEventListener("click", act);
    return made;
  }

  function player(figure, viewer, data, start) {
    const last = data.frames.length - 1;
    let playing = false;
    let shownAt = 0;
    figure.frame = start;

    const bar = Object.assign(document.createElement("div"), { className: "player" });
    const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: last, value: start });
    slider.setAttribute("aria-label", "Frame");
    const words = document.createElement("output");
    const play = button("▶", "Play (space)", () => toggle());
    bar.append(
      button("|‹", "First frame (Home)", () => go(0)),
      button("‹", "One frame back (left arrow)", () => go(figure.frame - 1)),
      play,
      button("›", "One frame on (right arrow)", () => go(figure.frame + 1)),
      slider,
      words,
    );
    figure.append(bar);

    function tell() {
      const frame = data.frames[figure.frame];
      words.textContent = `frame ${figure.frame + 1} of ${last + 1}` +
        (frame.time_ps === undefined ? "" : `, ${frame.time_ps.toFixed(3)} ps, step ${frame.step}`);
      slider.value = figure.frame;
      slider.setAttribute("aria-valuetext", words.textContent);
    }

    function go(to, keep = false) {
      if (!keep) stop();
      figure.frame = Math.max(0, Math.min(last, to));
      figure.redraw();
      tell();
    }

    function stop() {
      playing = false;
      play.textContent = "▶";
      play.setAttribute("aria-label", "Play (space)");
    }

    function toggle() {
      if (playing) { stop(); return; }
      playing = true;
      play.textContent = "❚❚";
      play.setAttribute("aria-label", "Pause (space)");
      if (figure.frame === last) figure.frame = -1;
      requestAnimationFrame(tick);
    }

    function tick(moment) {
      if (!playing || !figure.isConnected) return;
      if (moment - shownAt >= FRAME_MS) {
        shownAt = moment;
        go(figure.frame + 1, true);
        if (figure.frame === last) { stop(); return; }
      }
      requestAnimationFrame(tick);
    }

    slider.addEventListener("input", () => go(Number(slider.value)));
    figure.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
      if (event.key === " " && event.target.tagName !== "BUTTON") toggle();
      else if (event.target === slider) return; // it knows the arrows itself
      else if (event.key in moves) go(figure.frame + moves[event.key]);
      else if (event.key === "Home") go(0);
      else if (event.key === "End") go(last);
      else return;
      event.preventDefault();
    });
    figure.tabIndex = 0;
    tell();
  }

  document.addEventListener("otf:structure", (event) => draw(event.detail));

  // A still picture turns into a 3D view when somebody points at it, taps it or comes to it by key.
  function wake(event) {
    const figure = event.target.closest && event.target.closest("figure[data-still]");
    if (!figure || figure.dataset.structure) return;
    figure.dataset.structure = figure.dataset.still;
    figure.dataset.seen = "yes";
    draw(figure);
  }
  for (const kind of ["pointerover", "focusin", "click"]) document.addEventListener(kind, wake);
  function reachable() {
    for (const figure of document.querySelectorAll("figure[data-still]")) figure.tabIndex = 0;
  }
  document.addEventListener("htmx:after:swap", reachable);
  reachable();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const figure of document.querySelectorAll("[data-drawn3d]")) figure.redraw();
  });
})();
