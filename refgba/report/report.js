"use strict";
// The table of neurons: unpacks what report.py packed, sorts and filters it, and shows one page of rows at a time.
// Everything that comes from the data goes into the page as text, never as markup.
(() => {
  const root = document.getElementById("neurons");
  if (!root) return;
  const status = root.querySelector(".status");
  const PAGE = 25;
  const { number, percent } = shared;

  // ---- unpacking ----------------------------------------------------------------------------------------------------

  async function open(id) {
    const about = JSON.parse(document.getElementById(id + "-about").textContent);
    const read = await shared.columns(about, document.getElementById(id).textContent);
    const data = { ...read, about, M: about.neurons };
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
      K && ["target", "group", (m) => percent(about.targets[data.group[m]]), true],
      ["frequency", "count", (m) => percent(data.count[m] / N)],
      K && ["of target", "share", (m) => number(data.share[m]) + " ×" + flag(data, m)],
      ["peak", "peak", text("peak")],
      ["mean", "mean", text("mean")],
      ["std", "std", text("std")],
      ["Z-score", "z", text("z")],
      data.b && ["bias b", "b", text("b")],
      data.a && ["scale a", "a", text("a")],
      data.theta && ["threshold θ", "theta", text("theta")],
      about.top && ["top rows", null, (m) => top(data, m)],
    ].filter(Boolean).map(([title, key, show, turned]) => ({ title, key, show, turned }));
  }

  const overTarget = (data, m) => data.count[m] / data.about.rows > data.about.targets[data.group[m]];
  const flag = (data, m) => (data.count[m] === 0 ? " dead" : overTarget(data, m) ? " over" : "");
  function top(data, m) {
    const found = [], T = data.about.top;
    for (let i = 0; i < T; i++) {
      const row = data.top[m * T + i];
      if (row !== 0xffffffff) found.push(row);
    }
    return found.join(", ");
  }

  // ---- sorting ------------------------------------------------------------------------------------------------------

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
  let data, order, shown, first = 0, sort = { column: "neuron", turned: false };
  const control = (name) => root.querySelector(`[name="${name}"]`);

  function arrange() {
    const column = data.columns.find((c) => c.title === sort.column) || data.columns[0];
    const turned = column.turned ? !sort.turned : sort.turned;
    order = column.title === "label" ? byLabel(data, turned) : shared.sorted(data[column.key], turned);
  }

  function filter() {
    const group = control("group").value, which = control("which").value;
    const said = control("find").value.trim().toLowerCase();
    const wanted = group === "" ? -1 : Number(group);
    const count = data.count, groups = data.group, targets = data.about.targets, N = data.about.rows;
    const exact = /^\d+$/.test(said) ? Number(said) : -1;
    const out = new Uint32Array(data.M);
    let found = 0;
    for (let i = 0; i < data.M; i++) {
      const m = order[i];
      if (wanted >= 0 && groups[m] !== wanted) continue;
      if (which === "dead" && count[m] !== 0) continue;
      if (which === "alive" && count[m] === 0) continue;
      if (which === "over" && !(groups && count[m] / N > targets[groups[m]])) continue;
      if (which === "half" && count[m] * 2 <= N) continue;
      if (which === "labelled" && !data.labels.has(m)) continue;
      if (said && m !== exact && !(data.labels.get(m) ?? "").toLowerCase().includes(said)) continue;
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
      th.className = column.title === "label" || column.title === "top rows" ? "" : "n";
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
    root.querySelector("thead").replaceChildren(row);
  }

  function draw() {
    [...root.querySelectorAll("thead th")].forEach((th, i) => {
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
        cell.className = { label: "label", "top rows": "rows" }[column.title] || "n";
        cell.textContent = column.show(shown[i]);
        tr.append(cell);
      });
      body.push(tr);
    }
    root.querySelector("tbody").replaceChildren(...body);
    const whole = shown.length === data.M ? "" : ` (of ${data.M.toLocaleString("en")})`;
    status.textContent = shown.length
      ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${shown.length.toLocaleString("en")} neurons${whole}`
      : `No neuron fits${whole}`;
    for (const [name, off] of [["begin", first === 0], ["back", first === 0]]) control(name).disabled = off;
    for (const name of ["on", "end"]) control(name).disabled = last >= shown.length;
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
    if (run) run.addEventListener("change", () => choose(run.value));
    for (const name of ["group", "which"]) control(name).addEventListener("change", () => { filter(); draw(); });
    let waiting;
    control("find").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { filter(); draw(); }, 120);
    });
    control("begin").addEventListener("click", () => move(0));
    control("back").addEventListener("click", () => move(first - PAGE));
    control("on").addEventListener("click", () => move(first + PAGE));
    control("end").addEventListener("click", () => move(shown.length));
    root.dataset.ready = String(Math.round(performance.now() - began));
  }

  start();
})();
