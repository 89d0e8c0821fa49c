"use strict";
// The table of neurons: unpacks what neurons.py packed, sorts and filters it, shows one page of rows at a time, and any
// one neuron alone.  And small tables that are sorted by the heading that is clicked.
// Everything that comes from the data goes into the page as text, never as markup.
(() => {
  // ---- small tables -------------------------------------------------------------------------------------------------

  const amount = (text) => Number(text.replace(/^over |[,%]/g, ""));

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((th, c) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...th.childNodes);
      th.append(button);
      button.addEventListener("click", () => {
        const down = th.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        th.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => amount(row.cells[c].textContent);
        const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * (value(a) - value(b)));
        body.replaceChildren(...rows);
      });
    });
  }

  const root = document.getElementById("neurons");
  if (!root) return;
  const status = root.querySelector(".status"), table = root.querySelector(":scope > .scroll table");
  const PAGE = 25;
  const { number, percent, sorted } = shared;

  // ---- unpacking ----------------------------------------------------------------------------------------------------

  async function open(id) {
    const about = JSON.parse(document.getElementById(id + "-about").textContent);
    const read = await shared.columns(about, document.getElementById(id).textContent);
    const data = { ...read, about, M: about.neurons, columns: [] };
    data.id = id;
    derive(data);
    return data;
  }

  function derive(data) {
    const { about, M } = data, K = about.targets.length, N = about.rows;
    data.neuron = Uint32Array.from({ length: M }, (_, m) => m);
    if (K) {
      data.group = new Uint32Array(M);
      for (let m = 0; m < M; m++) data.group[m] = Math.floor((m * K) / M);
      data.share = new Float32Array(M);
      for (let m = 0; m < M; m++) data.share[m] = data.count[m] / N / about.targets[data.group[m]];
    }
    data.z = new Float32Array(M);
    for (let m = 0; m < M; m++) data.z[m] = data.std[m] > 0 ? (data.peak[m] - data.mean[m]) / data.std[m] : 0;
    data.labels = new Map(about.labels);
    const text = (column) => (m) => number(data[column][m]);
    data.columns = [
      ["neuron", "neuron", (m) => String(m)],
      data.labels.size && ["label", null, (m) => data.labels.get(m) ?? ""],
      K && ["group", "group", (m) => String(data.group[m] + 1)],
      K && ["target", "group", (m) => percent(about.targets[data.group[m]]), true, "less"],
      ["frequency", "count", (m) => percent(data.count[m] / N)],
      K && ["of target", "share", (m) => number(data.share[m]) + " ×" + flag(data, m)],
      ["peak", "peak", text("peak"), false, "less"],
      ["mean", "mean", text("mean"), false, "less"],
      ["std", "std", text("std"), false, "less"],
      ["Z-score", "z", text("z"), false, "less"],
      data.b && ["bias b", "b", text("b"), false, "less"],
      data.a && ["scale a", "a", text("a"), false, "less"],
      data.theta && ["threshold θ", "theta", text("theta"), false, "less"],
    ].filter(Boolean).map(([title, key, show, turned, less = ""]) => ({ title, key, show, turned, less }));
  }

  const overTarget = (data, m) => data.count[m] / data.about.rows > data.about.targets[data.group[m]];
  const flag = (data, m) => (data.count[m] === 0 ? " dead" : overTarget(data, m) ? " over" : "");

  function byLabel(data, turned) {
    const named = [...data.labels.keys()].filter((m) => m < data.M).sort((i, j) => {
      const before = data.labels.get(i).localeCompare(data.labels.get(j));
      return (turned ? -before : before) || i - j;
    });
    const order = new Uint32Array(data.M);
    order.set(named);
    let at = named.length;
    for (let m = 0; m < data.M; m++) if (!data.labels.has(m)) order[at++] = m;
    return order;
  }

  // ---- the page's state ---------------------------------------------------------------------------------------------

  const runs = new Map();
  let data, order, shown, opened = -1, first = 0, sort = { column: "neuron", turned: false };
  const control = (name) => root.querySelector(`[name="${name}"]`);

  function arrange() {
    const column = data.columns.find((c) => c.title === sort.column) || data.columns[0];
    const turned = column.turned ? !sort.turned : sort.turned;
    order = column.title === "label" ? byLabel(data, turned) : sorted(data[column.key], turned);
  }

  const numbered = (said) => (/^\d+$/.test(said) ? Number(said) : -1);

  function filter() {
    const group = control("group").value, which = control("which").value;
    const said = control("find").value.trim().toLowerCase();
    const wanted = group === "" ? -1 : Number(group);
    const count = data.count, groups = data.group, targets = data.about.targets, N = data.about.rows;
    const exact = numbered(said);
    const out = new Uint32Array(data.M);
    let found = 0;
    for (let i = 0; i < data.M; i++) {
      const m = order[i];
      if (m === exact) { // whatever else is asked for: it was named
        out[found++] = m;
        continue;
      }
      if (wanted >= 0 && groups[m] !== wanted) continue;
      if (which === "dead" && count[m] !== 0) continue;
      if (which === "alive" && count[m] === 0) continue;
      if (which === "over" && !(groups && count[m] / N > targets[groups[m]])) continue;
      if (which === "half" && count[m] * 2 <= N) continue;
      if (which === "labelled" && !data.labels.has(m)) continue;
      if (said && !(data.labels.get(m) ?? "").toLowerCase().includes(said)) continue;
      out[found++] = m;
    }
    shown = out.subarray(0, found);
    first = 0;
  }

  function head() {
    const row = document.createElement("tr");
    for (const column of data.columns) {
      const th = document.createElement("th");
      th.scope = "col";
      th.className = `${column.title === "label" ? "" : "n"} ${column.less}`.trim();
      if (column.key || column.title === "label") {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = column.title;
        button.addEventListener("click", () => {
          const again = sort.column === column.title;
          sort = { column: column.title, turned: again ? !sort.turned : !["neuron", "group", "label"].includes(column.title) };
          arrange();
          filter();
          draw();
        });
        th.append(button);
      } else th.textContent = column.title;
      row.append(th);
    }
    table.tHead.replaceChildren(row);
  }

  function draw() {
    [...table.tHead.rows[0].cells].forEach((th, i) => {
      const mine = data.columns[i].title === sort.column;
      if (mine) th.setAttribute("aria-sort", sort.turned ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    const last = Math.min(first + PAGE, shown.length), body = [];
    for (let i = first; i < last; i++) {
      const tr = document.createElement("tr");
      data.columns.forEach((column, c) => {
        const cell = document.createElement(c === 0 ? "th" : "td");
        if (c === 0) cell.scope = "row";
        cell.className = `${column.title === "label" ? "label" : "n"} ${column.less}`.trim();
        cell.append(c === 0 ? opener(data.id, shown[i]) : column.show(shown[i]));
        tr.append(cell);
      });
      body.push(tr);
    }
    table.tBodies[0].replaceChildren(...body);
    const whole = shown.length === data.M ? "" : ` (of ${data.M.toLocaleString("en")})`;
    status.textContent = shown.length
      ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${shown.length.toLocaleString("en")} neurons${whole}`
      : `No neuron fits${whole}`;
    for (const [name, off] of [["begin", first === 0], ["back", first === 0]]) control(name).disabled = off;
    for (const name of ["on", "end"]) control(name).disabled = last >= shown.length;
  }

  // ---- one neuron ---------------------------------------------------------------------------------------------------

  const view = root.querySelector(".view");
  const hash = (id, m) => `#neuron-${m}${id === "neurons-0" ? "" : `-of-${Number(id.slice(8)) + 1}`}`;

  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // A link that opens a neuron: it works by click and by keyboard, and its address can be passed on.
  function opener(id, m, text = String(m)) {
    return make("a", { href: hash(id, m), title: `see neuron ${m} alone` }, text);
  }

  const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;

  function drawn(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function histogram(m) {
    const B = data.about.bins, W = 420, H = 220, left = 58, right = W - 22, top = 12, bottom = H - 42;
    const most = data.most[m], end = data.end[m], across = (right - left) / B;
    let d = "";
    for (let k = 0; k < B; k++) {
      const high = ((bottom - top) * data.bins[m * B + k]) / 255;
      if (high) d += `M${left + k * across} ${bottom}v${-high}h${across}V${bottom}z`;
    }
    const parts = [drawn("path", { d, class: "area" }), drawn("path", { d: `M${left} ${top}V${bottom}H${right}`, class: "axis" })];
    const text = (x, y, anchor, words) => drawn("text", { x, y, "text-anchor": anchor }, words);
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      const x = left + share * (right - left);
      parts.push(drawn("path", { d: `M${x} ${bottom}v4`, class: "axis" }), text(x, bottom + 17, "middle", number(share * end)));
    }
    for (const count of new Set([0, Math.round(most / 2), most])) {
      const y = bottom - ((bottom - top) * count) / most;
      parts.push(drawn("path", { d: `M${left} ${y}h-4`, class: "axis" }), text(left - 7, y + 4, "end", count.toLocaleString("en")));
    }
    parts.push(text((left + right) / 2, H - 6, "middle", "activation (pre-activation y, where y > 0)"));
    const middle = (top + bottom) / 2;
    parts.push(drawn("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, "rows"));
    const alt = `Histogram of the activations of neuron ${m} on ${data.count[m]} rows, from 0 to ${number(end)}`;
    return drawn("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": alt, class: "plot" }, ...parts);
  }

  function lines(heads, rows) {
    const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col", class: "n" }, text)));
    const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", { class: "n" }, cell))));
    return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  }

  function part(title, ...content) {
    return make("div", {}, make("h4", {}, title), ...content);
  }

  function topRows(m) {
    const T = data.about.top, rows = [];
    for (let i = m * T; i < (m + 1) * T; i++) if (data.top[i] !== 0xffffffff) rows.push([String(data.top[i]), number(data.value[i])]);
    return rows.length ? lines(["row of the data", "activation"], rows) : make("p", {}, "It fired on no row.");
  }

  function neighbours(m) {
    return data.about.near.map((near) => {
      const found = [], id = `neurons-${near.data}`;
      for (let i = m * near.width; i < (m + 1) * near.width; i++) {
        const other = data["near" + near.column][i], cosine = number(data["cosine" + near.column][i]);
        if (other !== 0xffffffff) found.push([opener(near.run ? id : data.id, other), cosine]);
      }
      return part(near.run ? `Nearest in ${near.run}` : "Nearest neurons", lines(["neuron", "cosine"], found));
    });
  }

  function show(m) {
    opened = m;
    const label = data.labels.get(m);
    const facts = data.columns.slice(1).filter((column) => column.title !== "label");
    const list = make("dl", { class: "facts" }, ...facts.flatMap((c) => [make("dt", {}, c.title), make("dd", {}, c.show(m))]));
    const close = make("button", { type: "button" }, "Close");
    close.addEventListener("click", shut);
    const step = (to, text) => (to >= 0 && to < data.M ? opener(data.id, to, text) : "");
    const run = control("run"), of = run ? ` of ${run.selectedOptions[0].textContent}` : "";
    const bar = make("div", { class: "bar" }, step(m - 1, "← previous"), step(m + 1, "next →"), close);
    const activity = data.about.bins && data.count[m] ? histogram(m) : make("p", {}, data.count[m] ? "Not kept for so many neurons." : "It fired on no row.");
    view.replaceChildren(
      make("h3", {}, `Neuron ${m}${of}`, ...(label ? [": ", make("bdi", {}, label)] : [])),
      bar,
      make("div", { class: "parts" }, part("Activations", activity), part("Numbers", list),
        ...(data.about.top ? [part("Top rows", topRows(m))] : []), ...neighbours(m)),
    );
    view.hidden = false;
    view.focus({ preventScroll: true });
    view.scrollIntoView({ block: "nearest" });
  }

  function shut() {
    const link = [...table.querySelectorAll("tbody th a")].find((a) => a.textContent === String(opened));
    view.hidden = true;
    opened = -1;
    history.replaceState(null, "", location.pathname + location.search);
    (link || control("find")).focus();
  }

  // The address of a neuron opens it: so links, the back button and a pasted address all do.
  async function follow() {
    const found = /^#neuron-(\d+)(?:-of-(\d+))?$/.exec(location.hash);
    if (!found) return;
    const id = `neurons-${found[2] ? Number(found[2]) - 1 : 0}`, m = Number(found[1]);
    if (!document.getElementById(id)) return;
    if (data.id !== id) {
      control("run").value = id;
      await choose(id);
    }
    if (m < data.M) show(m);
  }

  function keys(event) {
    if (opened < 0 || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input, select")) return;
    const to = { ArrowLeft: opened - 1, ArrowRight: opened + 1 }[event.key];
    if (event.key === "Escape") shut();
    else if (to >= 0 && to < data.M) location.hash = hash(data.id, to);
    else return;
    event.preventDefault();
  }

  function move(to) {
    const end = Math.max(0, Math.floor((shown.length - 1) / PAGE) * PAGE);
    first = Math.min(Math.max(0, to), end);
    draw();
  }

  async function choose(id) {
    status.textContent = "unpacking…";
    if (!runs.has(id)) runs.set(id, await open(id));
    data = runs.get(id);
    const group = control("group"), K = data.about.targets.length;
    group.replaceChildren(new Option("all", ""));
    data.about.targets.forEach((p, k) => group.append(new Option(`${k + 1}: ${percent(p)}`, String(k))));
    group.closest("label").hidden = !K;
    control("which").querySelector('[value="over"]').disabled = !K;
    if (!data.columns.some((c) => c.title === sort.column)) sort = { column: "neuron", turned: false };
    if (!K && control("which").value === "over") control("which").value = "";
    head();
    arrange();
    filter();
    draw();
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") {
      status.textContent = "This browser cannot unpack the table (it has no DecompressionStream): the first rows follow.";
      return;
    }
    const began = performance.now(), run = control("run");
    try {
      await choose(run ? run.value : "neurons-0");
    } catch (error) {
      status.textContent = `The table could not be unpacked (${error.message}): the first rows follow.`;
      return;
    }
    root.querySelectorAll("[hidden].controls, [hidden].pager").forEach((part) => { part.hidden = false; });
    if (run) run.addEventListener("change", () => {
      view.hidden = true;
      opened = -1;
      choose(run.value);
    });
    for (const name of ["group", "which"]) control(name).addEventListener("change", () => { filter(); draw(); });
    let waiting;
    control("find").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { filter(); draw(); }, 120);
    });
    control("find").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      clearTimeout(waiting);
      filter();
      draw();
      const m = numbered(control("find").value.trim());
      if (m >= 0 && m < data.M) location.hash = hash(data.id, m);
      else if (shown.length) location.hash = hash(data.id, shown[0]);
      follow();
    });
    document.addEventListener("keydown", keys);
    window.addEventListener("hashchange", follow);
    await follow();
    control("begin").addEventListener("click", () => move(0));
    control("back").addEventListener("click", () => move(first - PAGE));
    control("on").addEventListener("click", () => move(first + PAGE));
    control("end").addEventListener("click", () => move(shown.length));
    root.dataset.ready = String(Math.round(performance.now() - began));
  }

  start();
})();
