// What pages do beyond links and forms. Everything works without this file; with it, pages stay
// fresh, figures and structures appear, and a few keys help.
"use strict";
(() => {
  const body = document.body;

  // -- live: one stream for this page while it is looked at ------------------------------------

  const TOPICS = ["campaigns", "labels", "jobs", "models", "database"];
  const COLLECT_MS = 150;
  let stream = null;
  let lost = false;
  let changed = new Set();
  let timer = null;

  const sign = () => document.querySelector("[data-live-sign]");
  function say(text, kind) {
    const element = sign();
    if (!element || element.textContent === text) return;
    element.textContent = text;
    element.classList.toggle("on", kind === "on");
    element.classList.toggle("off", kind === "off");
  }

  function note(topics) {
    for (const topic of topics) changed.add(topic);
    timer = timer || setTimeout(tell, COLLECT_MS);
  }

  function tell() {
    const topics = changed;
    changed = new Set();
    timer = null;
    for (const element of document.querySelectorAll("[data-live]")) {
      if (element.dataset.live.split(/\s+/).some((topic) => topics.has(topic))) {
        htmx.trigger(element, "otf:refresh");
      }
    }
    for (const figure of document.querySelectorAll("[data-figure]")) {
      const mine = (figure.dataset.figureLive || "").split(/\s+/);
      if (mine.some((topic) => topics.has(topic))) draw(figure);
    }
  }

  function connect() {
    if (stream || document.hidden || !body.dataset.events) return;
    stream = new EventSource(body.dataset.events);
    stream.onopen = () => {
      say("live", "on");
      if (lost) note(TOPICS); // something may have been missed
      lost = false;
    };
    stream.onerror = () => {
      say("connection lost, trying again", "off");
      lost = true;
      if (stream.readyState === EventSource.CLOSED) {
        stream = null;
        setTimeout(connect, 5000);
      }
    };
    for (const topic of TOPICS) stream.addEventListener(topic, () => note([topic]));
  }

  // Browsers allow six streams to one address; a hidden page gives its own up.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      if (stream) stream.close();
      stream = null;
      lost = true;
    } else {
      connect();
    }
  });
  window.addEventListener("pagehide", () => stream && stream.close());

  // What a person has opened stays open, and what is being chosen stays chosen.
  htmx.registerExtension("otf-keep", {
    htmx_before_morph_attr: (element, detail) =>
      !(detail.attrName === "open" && /^(DETAILS|DIALOG)$/.test(element.tagName)),
  });

  document.addEventListener("htmx:after:swap", () => ready(document));
  document.addEventListener("htmx:response:error", (event) => {
    const status = event.detail.ctx.response.status;
    if (status === 401) location.reload();
  });

  // -- moments: local time beside UTC, relative words that do not go stale ---------------------

  function relative(seconds) {
    const text = (s) =>
      s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min`
      : s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
    return seconds < -1 ? `in ${text(-seconds)}` : `${text(Math.max(seconds, 0))} ago`;
  }

  function clocks(root) {
    for (const element of root.querySelectorAll("time[datetime]")) {
      const moment = new Date(element.dateTime);
      const text = relative((Date.now() - moment) / 1000);
      if (element.textContent !== text) element.textContent = text;
      const local = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
      const utc = moment.toISOString().slice(0, 19).replace("T", " ");
      element.title = `${utc} UTC\n${local}`;
    }
  }
  setInterval(() => clocks(document), 20000);

  // -- figures and structures: libraries are loaded when one is first needed --------------------

  const loading = {};
  function library(name) {
    loading[name] = loading[name] || new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = body.dataset[name];
      script.onload = resolve;
      script.onerror = () => reject(new Error(`${name} could not be loaded`));
      document.head.append(script);
    });
    return loading[name];
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function dressed(layout, height) {
    const axis = {
      gridcolor: colour("--line"), linecolor: colour("--line-strong"),
      zerolinecolor: colour("--line-strong"), automargin: true,
    };
    const merged = {
      paper_bgcolor: "transparent", plot_bgcolor: "transparent", height,
      font: { family: getComputedStyle(body).fontFamily, size: 13, color: colour("--ink") },
      margin: { l: 56, r: 14, t: 14, b: 44 },
      colorway: ["--accent", "--warn", "--good", "--bad", "--calm"].map(colour),
      legend: { orientation: "h", y: 1.12, x: 0 },
      uirevision: "keep", hovermode: "closest",
      ...layout,
    };
    for (const key of Object.keys(merged)) {
      if (/^[xy]axis\d*$/.test(key)) merged[key] = { ...axis, ...merged[key] };
    }
    merged.xaxis = merged.xaxis || axis;
    merged.yaxis = merged.yaxis || axis;
    return merged;
  }

  // "good", "bad" … as a colour in a figure mean the colours of this page.
  function painted(value) {
    if (typeof value === "string" && value.startsWith("--")) return colour(value);
    if (Array.isArray(value)) return value.map(painted);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v)]));
    }
    return value;
  }

  async function draw(figure) {
    const area = figure.querySelector(".plot-area");
    try {
      const [answer] = await Promise.all([
        fetch(figure.dataset.figure, { headers: { Accept: "application/json" } }),
        library("plotly"),
      ]);
      if (!answer.ok) throw new Error(`no data (${answer.status})`);
      const { data, layout } = await answer.json();
      if (!area.isConnected) return;
      const waiting = area.querySelector(":scope > .waiting");
      if (waiting) waiting.remove();
      area.setAttribute("role", "group");
      await Plotly.react(area, painted(data), painted(dressed(layout, Number(figure.dataset.height))), {
        responsive: true, displaylogo: false,
        modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"],
      });
      figure.dataset.drawn = "yes";
    } catch (error) {
      area.textContent = `The figure cannot be shown: ${error.message}.`;
    }
  }

  const waitingToBeSeen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      waitingToBeSeen.unobserve(entry.target);
      if (entry.target.dataset.figure) draw(entry.target);
      else document.dispatchEvent(new CustomEvent("otf:structure", { detail: entry.target }));
    }
  }, { rootMargin: "200px" });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const figure of document.querySelectorAll("[data-drawn]")) draw(figure);
  });

  // -- small things ---------------------------------------------------------------------------

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      const code = button.previousElementSibling;
      if (code) getSelection().selectAllChildren(code);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });

  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-filters]");
    if (form && event.target.matches("select")) form.requestSubmit();
    const all = event.target.closest("[data-check-all]");
    if (all) {
      for (const box of document.querySelectorAll(`input[name="${all.dataset.checkAll}"]`)) {
        if (!box.disabled) box.checked = all.checked;
      }
    }
  });

  // Filters leave what is empty out of the address.
  document.addEventListener("submit", (event) => {
    if (!event.target.matches("form[data-filters]")) return;
    for (const field of event.target.elements) {
      if (field.name && field.value === "") field.disabled = true;
    }
    setTimeout(() => { for (const field of event.target.elements) field.disabled = false; });
  });

  let leader = false;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select, textarea, [contenteditable]")) return;
    if (event.key === "/") {
      const field = document.querySelector("[data-search]");
      if (field) { event.preventDefault(); field.focus(); field.select(); }
    } else if (leader) {
      leader = false;
      const link = document.querySelector(`.top nav a[data-key="${CSS.escape(event.key)}"]`);
      if (link) link.click();
    } else if (event.key === "g") {
      leader = true;
      setTimeout(() => { leader = false; }, 1200);
    }
  });

  function ready(root) {
    clocks(root);
    for (const element of root.querySelectorAll("[data-figure], [data-structure]")) {
      if (element.dataset.seen) continue;
      element.dataset.seen = "yes";
      waitingToBeSeen.observe(element);
    }
  }

  // A narrow window shows a part of the menu; it is the part with this page.
  const current = document.querySelector(".top nav a[aria-current]");
  if (current) current.parentElement.scrollLeft = current.offsetLeft - 80;

  window.otf = { library, colour, draw }; // for the other scripts of these pages
  ready(document);
  connect();
})();
