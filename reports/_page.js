// The page's own script: unpacks plotly, draws what is in sight, and answers clicks. No network, no dependencies.
(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const html = document.documentElement;
  const trouble = (text) => { const p = document.getElementById("trouble"); p.textContent = text; p.hidden = false; };

  const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
  const VALUE = new Uint8Array(128).fill(84);      // what pads the last group
  [...DIGITS].forEach((c, i) => { VALUE[c.charCodeAt(0)] = i; });
  async function unpack(base85) {
    const text = base85.trim(), groups = Math.ceil(text.length / 5), bytes = new Uint8Array(groups * 4);
    for (let g = 0, at = 0; g < groups; g++) {
      let n = 0;
      for (let k = 0; k < 5; k++, at++) n = n * 85 + (at < text.length ? VALUE[text.charCodeAt(at)] : 84);
      for (let k = 3; k >= 0; k--, n = Math.floor(n / 256)) bytes[4 * g + k] = n % 256;
    }
    return inflate(bytes.subarray(0, bytes.length - (5 * groups - text.length)));
  }
  async function inflate(bytes) {
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
  }

  // ------------------------------------------------------------ light and dark
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("perfscope-theme"); } catch (e) { /* no storage on this page: the system decides */ }
  function theme(name) {
    html.dataset.theme = name;
    all("figure.plot").forEach((f) => f.drawn && draw(f));
  }
  const wanted = () => chosen || (dark.matches ? "dark" : "light");
  html.dataset.theme = wanted();
  dark.addEventListener("change", () => theme(wanted()));
  document.getElementById("theme").addEventListener("click", () => {
    chosen = html.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("perfscope-theme", chosen); } catch (e) { /* not kept, still applied */ }
    theme(chosen);
  });

  // ------------------------------------------------------------ figures
  const colour = (name) => getComputedStyle(html).getPropertyValue(`--${name}`).trim();
  function themed(value) {                         // "theme:text" -> the page's own text colour
    if (typeof value === "string") return value.startsWith("theme:") ? colour(value.slice(6)) : value;
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v)]));
    return value;
  }
  function layout(given, narrow) {
    const out = themed(given), grid = colour("grid"), line = colour("line"), muted = colour("muted");
    out.font = { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12.5, color: colour("text"), ...out.font };
    out.paper_bgcolor = out.plot_bgcolor = "rgba(0,0,0,0)";
    out.margin = { l: narrow ? 46 : 64, r: 16, t: 20, b: 44, ...out.margin };
    out.hoverlabel = { bgcolor: colour("raised"), bordercolor: line, font: { color: colour("text") }, align: "left" };
    out.modebar = { bgcolor: "rgba(0,0,0,0)", color: grid, activecolor: muted, ...out.modebar };
    out.dragmode = narrow ? false : out.dragmode || "zoom";
    if (!Object.keys(out).some((k) => /^[xy]axis/.test(k))) out.xaxis = {}, out.yaxis = {};
    for (const key of Object.keys(out).filter((k) => /^[xy]axis/.test(k))) {
      const title = out[key].title || {};
      out[key] = { gridcolor: grid, linecolor: line, zerolinecolor: line, automargin: true, fixedrange: narrow, ...out[key],
        title: { ...title, font: { size: 12, color: muted, ...title.font } }, tickfont: { color: muted } };
    }
    return out;
  }
  const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
  function draw(f) {
    const given = f.views[f.view], narrow = innerWidth < 640;
    const hidden = f.drawn ? Object.fromEntries((f.canvas.data || []).filter((t) => t.visible === "legendonly" || t.visible === true).map((t) => [t.name, t.visible])) : {};
    const data = themed(given.data).map((t) => (t.name in hidden ? { ...t, visible: hidden[t.name] } : t));
    f.drawn = true;
    return Plotly.react(f.canvas, data, layout(given.layout || {}, narrow), CONFIG);
  }
  function prepare(f, stored) {
    f.views = stored[Number(f.querySelector("script.figure").textContent)];
    f.canvas = f.querySelector(".canvas");
    const names = Object.keys(f.views);
    f.view = names[0];
    if (names.length < 2) return;
    const group = document.createElement("div");
    group.className = "segments";
    group.setAttribute("role", "group");
    for (const name of names) {
      const b = document.createElement("button");
      b.type = "button";
      b.textContent = name;
      b.dataset.view = name;
      b.setAttribute("aria-pressed", String(name === f.view));
      b.addEventListener("click", () => {
        f.view = name;
        all("button", group).forEach((x) => x.setAttribute("aria-pressed", String(x === b)));
        draw(f);
      });
      group.append(b);
    }
    f.prepend(group);
  }
  const shown = (f) => f.offsetParent !== null || f.getClientRects().length > 0;
  const pause = () => new Promise((done) => setTimeout(done));
  const inSight = (f) => shown(f) && f.getBoundingClientRect().top < innerHeight;
  async function drawShown(wanted = shown) {       // from the top of the page down, the browser breathing in between
    for (const f of all("figure.plot")) {
      if (f.drawn || !wanted(f)) continue;
      await draw(f);
      await pause();
    }
  }

  // ------------------------------------------------------------ batch selectors, tables, copy
  function choose(size) {
    for (const group of all(".batches")) {
      if (!group.querySelector(`.panel[data-batch="${size}"]`)) continue;
      all(".panel", group).forEach((p) => { p.hidden = p.dataset.batch !== size; });
      all(".batch button", group).forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.batch === size)));
    }
    return drawShown();
  }
  all(".batch button").forEach((b) => b.addEventListener("click", () => {
    const before = b.getBoundingClientRect().top;  // what was clicked stays under the finger
    choose(b.dataset.batch);
    scrollBy(0, b.getBoundingClientRect().top - before);
  }));
  function key(row, i) {
    const cell = row.cells[i], value = cell.dataset.v ?? cell.textContent.trim();
    const number = value === "" ? NaN : Number(value);
    return Number.isNaN(number) ? value : number;
  }
  function order(a, b) {                           // numbers, then words, then what is missing
    const rank = (v) => (typeof v === "number" ? 0 : v === "" || v === "–" ? 2 : 1);
    return rank(a) - rank(b) || (typeof a === "number" ? a - b : a.localeCompare(b));
  }
  all("table.sortable th").forEach((th) => th.addEventListener("click", () => {
    const i = th.cellIndex, body = th.closest("table").tBodies[0], up = th.getAttribute("aria-sort") !== "ascending";
    all("th", th.parentNode).forEach((x) => x.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a, i), key(b, i))));
  }));
  async function copy(text) {
    try { await navigator.clipboard.writeText(text); return true; } catch (e) { /* not allowed here: the old way */ }
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  all("button.copy").forEach((b) => b.addEventListener("click", async () => {
    b.textContent = (await copy(b.parentNode.querySelector("code").textContent)) ? "copied" : "select and copy by hand";
    setTimeout(() => { b.textContent = "copy"; }, 2000);
  }));

  // ------------------------------------------------------------ start
  async function start() {
    if (typeof DecompressionStream === "undefined") {
      trouble("This browser cannot unpack the figures (it has no DecompressionStream; Chrome 80, Firefox 113 and Safari 16.4 have). The numbers below stand.");
      return;
    }
    const stored = JSON.parse(await unpack(document.getElementById("figures").textContent));
    all("figure.plot").forEach((f) => prepare(f, stored));
    const code = document.createElement("script");
    code.textContent = await unpack(document.getElementById("bundle").textContent);
    document.head.append(code);
    await drawShown(inSight);
    html.dataset.drawn = performance.now().toFixed(0);      // the first screen stands
    await drawShown();
    html.dataset.all = performance.now().toFixed(0);        // and so does what is below it
    all("details").forEach((d) => d.addEventListener("toggle", () => drawShown()));
    for (const a of all("a[data-record]")) {
      const text = await unpack(a.closest("section").querySelector("script").textContent);
      a.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    }
    html.dataset.ready = performance.now().toFixed(0);
  }
  let kept = null;
  addEventListener("beforeprint", () => { kept = html.dataset.theme; theme("light"); });
  addEventListener("afterprint", () => { if (kept) theme(kept); });
  start().catch((e) => trouble(`The figures could not be drawn: ${e.message}. The numbers below stand.`));
})();
