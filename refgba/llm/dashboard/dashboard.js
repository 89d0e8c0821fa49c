// The dashboard: a table of all neurons to search, sort and filter, and the contexts of one neuron, loaded when it is
// looked at.  Everything that comes from the data goes into the page as text, never as markup.
(() => {
  const { number, percent } = shared;
  const root = document.getElementById("table"), view = document.getElementById("neuron");
  const status = root.querySelector(".status");
  const control = (name) => root.querySelector(`[name="${name}"]`);
  const PAGE = 25, LONGEST = 20;

  function node(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  }

  // Newlines, tabs and lone spaces as marks; what cannot be seen or would act on the page's text as a box.
  function visible(text) {
    const marks = { "\n": "⏎", "\t": "⇥", "\r": "␍" };
    let shown = text.replace(/[\n\t\r]/g, (c) => marks[c]);
    if (/^ +$/.test(text) || / {2}/.test(text)) shown = shown.replaceAll(" ", "·");
    return shown.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, "\u25a1") || "∅";
  }
  function chip(text) {
    const shown = visible(text.replace(/^ /, "·"));
    return node("span", { class: "token chip", title: shown }, shown.length > LONGEST ? `${shown.slice(0, LONGEST)}…` : shown);
  }

  // ---- the files of neurons -----------------------------------------------------------------------------------------

  const files = new Map(), arrived = new Map();
  window.neuronFile = (k, text) => arrived.set(k, [...(arrived.get(k) || []), text]);

  function load(k) {
    if (!files.has(k)) {
      const loading = new Promise((ready, failed) => {
        const script = node("script", { src: `neurons-${k}.js` });
        script.onload = () => (script.remove(), ready(arrived.get(k) || []));
        script.onerror = () => (script.remove(), files.delete(k), failed(new Error(`neurons-${k}.js is not there`)));
        document.head.append(script);
      }).then((texts) => Promise.all(texts.map(async (text) => JSON.parse(new TextDecoder().decode(await shared.inflate(text))))));
      files.set(k, loading);
    }
    return files.get(k);
  }

  async function entry(m) {
    for (const part of await load(Math.floor(m / about.perFile))) {
      const found = part.neurons.find((one) => one.neuron === m);
      if (found) return { ...found, texts: part.texts };
    }
    throw new Error(`neuron ${m} is not in its file`);
  }

  // ---- the table ----------------------------------------------------------------------------------------------------

  let about, data, words, columns, order, shown, first = 0, sort = { title: "neuron", turned: false };

  function head() {
    const row = node("tr");
    for (const column of columns) {
      const th = node("th", { scope: "col", class: column.text ? "" : "n" });
      if (column.key) {
        const button = node("button", { type: "button" }, column.title);
        button.addEventListener("click", () => {
          const again = sort.title === column.title;
          sort = { title: column.title, turned: again ? !sort.turned : column.title !== "neuron" };
          arrange();
        });
        th.append(button);
      } else th.textContent = column.title;
      row.append(th);
    }
    root.querySelector("thead").replaceChildren(row);
  }

  function arrange() {
    order = shared.sorted(data[columns.find((c) => c.title === sort.title).key], sort.turned);
    filter();
  }

  function filter() {
    const which = control("which").value, wanted = control("find").value.toLowerCase();
    const exact = /^\s*\d+\s*$/.test(wanted) ? Number(wanted) : -1, K = about.shown;
    const fits = wanted.trim() ? Uint8Array.from(words, (w) => w.toLowerCase().includes(wanted)) : null;
    const out = new Uint32Array(about.neurons);
    let found = 0;
    for (let i = 0; i < order.length; i++) {
      const m = order[i], count = data.count[m];
      if (which === "alive" && count === 0) continue;
      if (which === "dead" && count !== 0) continue;
      if (which === "half" && count * 2 <= about.rows) continue;
      if (which === "over" && !(data.target && count / about.rows > data.target[m])) continue;
      if (fits && m !== exact) {
        let has = false;
        for (let t = m * K; t < (m + 1) * K && data.tokens[t] !== about.absent; t++) has = has || fits[data.tokens[t]] === 1;
        if (!has) continue;
      }
      out[found++] = m;
    }
    shown = out.subarray(0, found);
    first = 0;
    draw();
  }

  function draw() {
    [...root.querySelectorAll("thead th")].forEach((th, i) => {
      if (columns[i].title === sort.title) th.setAttribute("aria-sort", sort.turned ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    const last = Math.min(first + PAGE, shown.length), body = [];
    for (let i = first; i < last; i++) {
      const row = node("tr");
      columns.forEach((column, c) => {
        const cell = node(c ? "td" : "th", { class: column.text ? "tokens" : "n", scope: c ? null : "row" });
        cell.append(...[column.show(shown[i])].flat());
        row.append(cell);
      });
      body.push(row);
    }
    root.querySelector("tbody").replaceChildren(...body);
    const whole = shown.length === about.neurons ? "" : ` (of ${about.neurons.toLocaleString("en")})`;
    status.textContent = shown.length
      ? `${(first + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${shown.length.toLocaleString("en")} neurons${whole}`
      : `No neuron fits${whole}`;
    for (const name of ["begin", "back"]) control(name).disabled = first === 0;
    for (const name of ["on", "end"]) control(name).disabled = last >= shown.length;
  }

  function move(to) {
    const end = Math.max(0, Math.floor((shown.length - 1) / PAGE) * PAGE);
    first = Math.min(Math.max(0, to), end);
    draw();
  }

  function tokens(m) {
    const made = [];
    for (let t = m * about.shown; t < (m + 1) * about.shown && data.tokens[t] !== about.absent; t++) made.push(chip(words[data.tokens[t]]));
    return made;
  }

  const frequency = (m) => data.count[m] / about.rows;
  const flag = (m) => (data.count[m] === 0 ? " dead" : data.target && frequency(m) > data.target[m] ? " over" : "");

  function describe() {
    const link = (m) => node("a", { href: `#${m}` }, String(m));
    data.neuron = Uint32Array.from({ length: about.neurons }, (_, m) => m);
    if (data.target) data.share = Float32Array.from(data.target, (p, m) => frequency(m) / p);
    columns = [
      { title: "neuron", key: "neuron", show: link },
      { title: "tokens", text: true, show: tokens },
      { title: "frequency", key: "count", show: (m) => percent(frequency(m)) },
      data.target && { title: "of target", key: "share", show: (m) => number(data.share[m]) + " ×" + flag(m) },
      { title: "peak", key: "peak", show: (m) => number(data.peak[m]) },
      { title: "mean", key: "mean", show: (m) => number(data.mean[m]) },
      { title: "nearest", key: "near", show: (m) => number(data.near[m]) },
      data.agreeing && { title: "in other run", key: "agreeing", show: (m) => number(data.agreeing[m]) },
    ].filter(Boolean);
  }

  // ---- one neuron ---------------------------------------------------------------------------------------------------

  function context(one, peak, texts) {
    const [, document_, position, at, pieces, fired, left] = one;
    const values = new Map(fired), out = new Set(left), line = node("p", { class: "context token" });
    pieces.forEach((piece, i) => {
      const value = values.get(i) || 0, span = node("span", {}, visible(texts[piece]));
      if (value) {
        span.className = "on";
        span.style.setProperty("--a", String(Math.max(0.12, Math.min(1, value / peak))));
      }
      if (i === at) span.classList.add("peak");
      if (out.has(i)) span.className = "out";
      span.title = out.has(i) ? "left out of the harvest" : number(value);
      line.append(span);
      if (texts[piece].endsWith("\n") && i !== pieces.length - 1) line.append("\n");
    });
    const where = `${number(values.get(at) || 0)} · document ${document_}, token ${position}`;
    return node("li", {}, node("div", { class: "where" }, where), line);
  }

  function histogram(bins) {
    const [from, counts] = bins, most = Math.max(...counts), width = 100 / counts.length;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const limit = (i) => 2 ** (about.lowest + (from + i) / about.perOctave);
    const total = counts.reduce((a, b) => a + b, 0);
    const says = `Histogram of ${total.toLocaleString("en")} activations from ${number(limit(0))} to ${number(limit(counts.length))}`;
    for (const [name, value] of Object.entries({ class: "histogram", viewBox: "0 0 100 50", preserveAspectRatio: "none", role: "img", "aria-label": says })) svg.setAttribute(name, value);
    counts.forEach((count, i) => {
      const bar = document.createElementNS(svg.namespaceURI, "rect"), height = (50 * count) / most;
      for (const [name, value] of Object.entries({ x: i * width + width * 0.06, y: 50 - height, width: width * 0.88, height })) bar.setAttribute(name, value);
      const title = document.createElementNS(svg.namespaceURI, "title");
      title.textContent = `${number(limit(i))} to ${number(limit(i + 1))}: ${count.toLocaleString("en")}`;
      bar.append(title);
      svg.append(bar);
    });
    return [svg, node("div", { class: "scale" }, node("span", {}, number(limit(0))), node("span", {}, "activation, logarithmic"), node("span", {}, number(limit(counts.length))))];
  }

  function tile(name, value, more = "") {
    return node("div", { class: "tile" }, node("div", { class: "name" }, name), node("div", { class: "value" }, value), node("div", { class: "more" }, more));
  }

  function list(title, items) {
    return node("div", {}, node("h3", {}, title), node("ul", { class: "links" }, ...items.map((item) => node("li", {}, ...item))));
  }

  function ways(m) {
    const at = shown.indexOf(m), bar = node("div", { class: "ways" });
    const button = (text, to) => {
      const made = node("button", { type: "button", disabled: to === undefined }, text);
      made.addEventListener("click", () => { location.hash = to; });
      return made;
    };
    bar.append(button("All neurons", ""), button("← Previous", at > 0 ? shown[at - 1] : undefined), button("Next →", at >= 0 ? shown[at + 1] : undefined));
    return bar;
  }

  function parts(one, peak) {
    const made = [], Q = about.quantiles;
    for (let q = 0; q <= Q; q++) {
      const contexts = one.contexts.filter((c) => c[0] === q);
      if (!contexts.length) continue;
      const title = q === 0 ? "Highest contexts" : `Quantile ${q} of ${Q}, ${percent(1 - (q - 1) / Q)} to ${percent(1 - q / Q)} of its contexts`;
      made.push(node("h3", {}, title), node("ol", { class: "contexts" }, ...contexts.map((c) => context(c, peak, one.texts))));
    }
    return made.length ? made : [node("p", {}, "It fired on no row of this store.")];
  }

  async function look(m) {
    let one;
    view.replaceChildren(ways(m), node("h3", {}, `Neuron ${m}`), node("p", {}, "reading…"));
    try {
      one = await entry(m);
    } catch (error) {
      view.lastChild.textContent = `Neuron ${m} could not be read: ${error.message}`;
      return;
    }
    if (current() !== m) return;
    const goal = data.target ? `target ${percent(data.target[m])}, ${number(data.share[m])} × of it${flag(m)}` : `${data.count[m].toLocaleString("en")} rows`;
    const near = one.near.map(([other, cosine]) => [node("a", { href: `#${other}` }, String(other)), ` ${number(cosine)}`]);
    const title = node("h3", { class: "name-of", tabindex: "-1" }, `Neuron ${m} `, ...tokens(m));
    const made = [
      ways(m), title,
      node("div", { class: "tiles" },
        tile("frequency", percent(frequency(m)), goal), tile("peak activation", number(data.peak[m])),
        tile("mean where active", number(data.mean[m])),
        ...(one.agreeing ? [tile(`in ${about.other}`, number(data.agreeing[m]), one.agreeing.length ? `cosine with its neuron ${one.agreeing[0][0]}` : "no neuron")] : [])),
      ...(one.histogram ? [node("h3", {}, "Activations"), ...histogram(one.histogram)] : []),
      list("Nearest neurons, by cosine of decoder rows", near),
    ];
    for (const [name, title] of [["promoted", "Logits promoted, per unit of activation"], ["suppressed", "Logits suppressed"]]) {
      if (one[name]) made.push(list(title, one[name].map(([text, value]) => [chip(one.texts[text]), number(value)])));
    }
    made.push(...parts(one, data.peak[m] || 1));
    view.replaceChildren(...made);
    title.focus({ preventScroll: true });
    scrollTo(0, view.offsetTop - 8);
    view.dataset.ready = String(m);
  }

  function current() {
    const m = /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : -1;
    return m >= 0 && m < about.neurons ? m : -1;
  }

  function route() {
    const m = current();
    root.hidden = m >= 0;
    view.hidden = m < 0;
    if (m >= 0) look(m);
  }

  function keys(event) {
    const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (event.altKey || event.ctrlKey || event.metaKey || typing) return;
    const m = current(), at = m < 0 ? -1 : shown.indexOf(m);
    if (event.key === "/") {
      event.preventDefault();
      location.hash = "";
      setTimeout(() => control("find").focus(), 0);
    } else if (event.key === "Escape" && m >= 0) location.hash = "";
    else if (event.key === "ArrowRight" && at >= 0 && at + 1 < shown.length) location.hash = shown[at + 1];
    else if (event.key === "ArrowLeft" && at > 0) location.hash = shown[at - 1];
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") {
      status.textContent = "This browser cannot unpack the table: it has no DecompressionStream.";
      return;
    }
    const began = performance.now(), block = (id) => document.getElementById(id).textContent;
    about = JSON.parse(block("about"));
    data = await shared.columns(about, block("columns"));
    words = JSON.parse(new TextDecoder().decode(await shared.inflate(block("words"))));
    describe();
    head();
    control("which").querySelector('[value="over"]').disabled = !data.target;
    root.querySelectorAll("[hidden]").forEach((part) => { part.hidden = false; });
    arrange();
    control("which").addEventListener("change", filter);
    let waiting;
    control("find").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(filter, 120);
    });
    control("begin").addEventListener("click", () => move(0));
    control("back").addEventListener("click", () => move(first - PAGE));
    control("on").addEventListener("click", () => move(first + PAGE));
    control("end").addEventListener("click", () => move(shown.length));
    addEventListener("hashchange", route);
    addEventListener("keydown", keys);
    route();
    root.dataset.ready = String(Math.round(performance.now() - began));
  }

  start();
})();
