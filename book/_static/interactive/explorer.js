// The explorer: settings on sliders, kept in the address, and four pictures of what they imply. Formulas: laws.js.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("settings");
  const spectra = JSON.parse(document.getElementById("digits-spectra").textContent);

  const steps = (low, high) => {
    const found = [];
    for (let power = 1; power <= high; power *= 2) found.push(power, ...(power > 1 ? [1.5 * power] : []));
    return found.filter(value => value >= low && value <= high);
  };
  const LISTS = {
    width: steps(16, 8192), rank: steps(1, 512), alpha: [0.25, 0.5, ...steps(1, 512)], dimension: steps(1, 8192),
    level: [0.02, 0.05, 0.1, 0.2, 0.3333, 0.5, 0.7, 0.9, 0.99, 1, 1.5, 2, 3, 4],
    cosine: Array.from({ length: 100 }, (_, i) => i / 100), tau: Array.from({ length: 41 }, (_, i) => 10 ** (i / 8 - 5)),
  };
  const START = {
    width: 768, rank: 8, alpha: 16, stabilised: 0, draw: "peft", level: 1, dimension: 320, cosine: 0.2, tau: 0.01,
    normalised: 1, seed: 1,
  };
  const state = { ...START };

  // ---------------------------------------------------------------- the address and the form

  function readAddress() {
    Object.assign(state, START);
    for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
      const value = Number(text);
      if (name === "draw" && [...form.elements.draw.options].some(option => option.value === text)) state.draw = text;
      else if (["stabilised", "normalised"].includes(name)) state[name] = value ? 1 : 0;
      else if (name === "cosine" && value >= 0 && value < 1) state.cosine = value;
      else if (["alpha", "level", "tau"].includes(name) && value > 0 && value < Infinity) state[name] = value;
      else if (["width", "rank", "dimension", "seed"].includes(name) && Number.isInteger(value) && value >= 1) {
        state[name] = Math.min(value, 65536);
      }
    }
    showForm();
  }

  function showForm() {
    state.rank = Math.min(state.rank, state.width);
    state.dimension = Math.min(state.dimension, state.width);
    for (const [name, list] of Object.entries(LISTS)) {
      const slider = form.elements[name], value = state[name];
      const nearest = list.reduce((best, v, i) => (Math.abs(Math.log((v + 0.01) / (value + 0.01)))
        < Math.abs(Math.log((list[best] + 0.01) / (value + 0.01))) ? i : best), 0);
      Object.assign(slider, { min: 0, max: list.length - 1, step: 1, value: nearest });
      const text = String(Number.isInteger(value) ? value : Number(value.toPrecision(3)));
      slider.setAttribute("aria-valuetext", text);
      document.querySelector(`output[for=${slider.id}]`).textContent = text;
    }
    form.elements.draw.value = state.draw;
    form.elements.stabilised.checked = Boolean(state.stabilised);
    form.elements.normalised.checked = Boolean(state.normalised);
    form.elements.level.disabled = state.draw !== "level";
  }

  function readForm(field) {
    if (field.name in LISTS) state[field.name] = LISTS[field.name][field.value];
    else if (field.type === "checkbox") state[field.name] = Number(field.checked);
    else state[field.name] = field.value;
    changed();
  }

  function changed() {
    showForm();
    const kept = Object.entries(state).filter(([name, value]) => value !== START[name]);
    history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
    requestAnimationFrame(draw);
  }

  // ---------------------------------------------------------------- charts

  const WIDE = 360, HIGH = 230, LEFT = 46, RIGHT = 18, TOP = 12, BOTTOM = 40;

  const place = ({ low, high, log }, from, to) => value => {
    const f = log ? Math.log : v => v;
    return from + ((f(value) - f(low)) / (f(high) - f(low))) * (to - from);
  };

  function ticks({ low, high, log }) {
    if (log) {
      const powers = [];
      for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++) powers.push(p);
      const every = Math.ceil(powers.length / 6);
      return powers.filter((_, i) => i % every === 0).map(p => 10 ** p);
    }
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough), found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step / 1e6; v += step) found.push(v);
    return found;
  }

  const tick = v => (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(0) : String(+v.toPrecision(3)));

  const line = (points, name) => `<polyline class="${name}" points="${points.map(p => p.map(v => v.toFixed(1))).join(" ")}"/>`;
  const text = (x, y, said, anchor = "start", name = "") =>
    `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}" class="${name}">${said}</text>`;

  // Draw one chart: axes, then what `marks(X, Y)` returns; `words` become caption and name.
  function chart(name, { x, y, marks, words }) {
    const X = place(x, LEFT, WIDE - RIGHT), Y = place(y, HIGH - BOTTOM, TOP);
    const across = ticks(x).map(v => `<path class="grid" d="M${X(v).toFixed(1)} ${TOP}V${HIGH - BOTTOM}"/>`
      + text(X(v), HIGH - BOTTOM + 15, tick(v), "middle"));
    const up = y.bare ? [] : ticks(y).map(v => `<path class="grid" d="M${LEFT} ${Y(v).toFixed(1)}H${WIDE - RIGHT}"/>`
      + text(LEFT - 5, Y(v) + 4, tick(v), "end"));
    const figure = document.getElementById(name), svg = figure.querySelector("svg");
    svg.setAttribute("viewBox", `0 0 ${WIDE} ${HIGH}`);
    svg.innerHTML = `${across.join("")}${up.join("")}<path class="axis" d="M${LEFT} ${TOP}V${HIGH - BOTTOM}H${WIDE - RIGHT}"/>`
      + text((LEFT + WIDE - RIGHT) / 2, HIGH - 6, x.label, "middle")
      + `<text transform="translate(12 ${(TOP + HIGH - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">${y.label}</text>`
      + `<svg x="${LEFT}" y="${TOP}" width="${WIDE - RIGHT - LEFT}" height="${HIGH - BOTTOM - TOP}" `
      + `viewBox="${LEFT} ${TOP} ${WIDE - RIGHT - LEFT} ${HIGH - BOTTOM - TOP}">${marks(X, Y)}</svg>`;
    svg.setAttribute("aria-label", words.replace(/<[^>]*>/g, ""));
    figure.querySelector("figcaption .words").innerHTML = words;
  }

  let plane = null; // the two axes of the plane, for touches
  const number = laws.shown, range = (n, f) => Array.from({ length: n }, (_, i) => f(i));

  function drawSpectrum(p) {
    const { rank, width, dimension, draw: kind, seed } = state, level = p.scaling ** 2 * p.variance;
    const orthonormal = kind === "orthonormal";
    const sets = [["full", width, p.order], ["lora", dimension, p.orderOnData]].map(([name, d, [low, high]], row) => {
      const [m, w] = [Math.min(rank, d), Math.max(rank, d)];
      const ends = orthonormal ? [low || (d === width ? high : 0), high] : laws.marchenkoPasturEdges(m, w, level);
      const grid = range(121, i => ends[0] + ((ends[1] - ends[0]) * (i + 0.5)) / 121);
      const law = orthonormal ? [] : grid.map(x => laws.marchenkoPasturDensity(x, m, w, level));
      const drawn = orthonormal ? [] : laws.wishartEigenvalues(m, w, level, laws.uniform(seed + 7919 * row));
      return { name, d, m, high, ends, grid, law, drawn };
    });
    const top = Math.max(1.05, ...sets.map(s => s.high), ...sets.flatMap(s => s.drawn)) * 1.05 - 1;
    const x = { low: -1.05, high: top, label: "eigenvalue of M" }, y = { low: -0.3, high: 1.1, label: "law, peak 1", bare: true };
    const found = set => set.drawn.length ? `, ${number(Math.max(...set.drawn) - 1)} in this draw` : "";
    chart("spectrum", {
      x, y,
      marks: (X, Y) => `<path class="bound" d="M${X(0)} ${Y(1.1)}V${Y(-0.3)}"/>` + sets.map((set, row) => {
        const peak = Math.max(...set.law), foot = -0.08 - 0.1 * row;
        const curve = set.law.length
          ? line([[X(set.ends[0] - 1), Y(0)], ...set.grid.map((v, i) => [X(v - 1), Y(set.law[i] / peak)]), [X(set.ends[1] - 1), Y(0)]], set.name)
          : set.ends[0] < set.ends[1]
            ? line([[X(set.ends[0] - 1), Y(0.3)], [X(set.ends[1] - 1), Y(0.3)]], `${set.name} thick`)
            : line([[X(set.high - 1), Y(0)], [X(set.high - 1), Y(1)]], `${set.name} thick`);
        const rug = set.drawn.map(v => `<path class="${set.name}" d="M${X(v - 1).toFixed(1)} ${Y(foot)}V${Y(foot - 0.08)}"/>`).join("");
        const mass = 1 - set.m / set.d;
        return curve + rug + (mass > 0 ? `<path class="${set.name} thick" d="M${X(-1) + 3 * row} ${Y(0)}V${Y(mass)}"/>` : "");
      }).join(""),
      words: (orthonormal ? "Orthonormal rows: one level on R<sup>n</sup>, an interval on the data. " : "")
        + `Largest eigenvalue of M by the law: <b>${number(sets[0].high - 1)}</b> on all of R<sup>n</sup>${found(sets[0])}; `
        + `<b>${number(sets[1].high - 1)}</b> on such data${found(sets[1])}. At −1: ${width - rank} of ${width}, and `
        + `${Math.max(0, dimension - rank)} of ${dimension}.`,
    });
  }

  function drawPlane(p) {
    const { width, rank, dimension } = state, most = Math.min(width, 1024);
    const ranks = [...new Set(range(90, i => Math.round(most ** (i / 89))))];
    const edge = ranks.map(r => laws.plan({ ...state, rank: r, dimension: 1 }).largestDimension);
    const x = { low: 1, high: Math.max(2, most), log: true, label: "rank" };
    const y = { low: 1, high: width, log: true, label: "dimension of the data" };
    chart("plane", {
      x, y,
      marks: (X, Y) => {
        const rim = ranks.map((r, i) => [X(r), Y(Math.max(1, edge[i]))]).filter((_, i) => edge[i] >= 1);
        const area = rim.length ? `<polygon class="inside" points="${[[rim[0][0], Y(1)], ...rim, [rim.at(-1)[0], Y(1)]].join(" ")}"/>` : "";
        const here = `<circle class="here" cx="${X(Math.min(rank, most))}" cy="${Y(dimension)}" r="6"/>`;
        const said = rim.length ? text(WIDE - RIGHT - 8, HIGH - BOTTOM - 10, "the order holds", "end") : "";
        return area + line(rim, "bound") + said + here;
      },
      words: `At rank ${rank} the order holds up to dimension <b>${p.largestDimension}</b> of ${width}; the data have ${dimension}. `
        + "Above the red line it is not guaranteed. At other ranks alpha stays what you set.",
    });
    plane = { x, y };
  }

  function drawDigits() {
    const rank = Object.keys(spectra.lora).map(Number).reduce((a, b) =>
      Math.abs(Math.log(b / state.rank)) < Math.abs(Math.log(a / state.rank)) ? b : a);
    const p = laws.plan({ ...state, rank, width: spectra.width, dimension: 1 });
    const unit = p.scaling ** 2 * p.variance * spectra.width;
    const sets = { full: spectra.full, lora: spectra.lora[rank].map(v => unit * v) };
    const all = Object.values(sets).flat().filter(v => v > 0), tau = state.tau * spectra.full[0];
    const bits = Object.fromEntries(Object.entries(sets).map(([name, s]) => [name, laws.informationBits(s, tau)]));
    chart("eigenvalues", {
      x: { low: 0, high: spectra.full.length, label: "index" },
      y: { low: Math.min(...all), high: 1.5 * Math.max(...all), log: true, label: "eigenvalue" },
      marks: (X, Y) => Object.entries(sets).map(([name, s]) => line(s.map((v, i) => [X(i + 1), Y(v)]), name)).join("")
        + `<path class="bound" d="M${X(0)} ${Y(tau)}H${X(spectra.full.length)}"/>`,
      words: `Information above τ (red): full fine-tuning <b>${number(bits.full)}</b> nats, LoRA at rank ${rank} <b>${number(bits.lora)}</b>. `
        + `LoRA's kernel is ${number(p.sgd)} of full fine-tuning's in the mean.`,
    });
    const orders = range(121, i => i / 40), both = Boolean(state.normalised);
    const curves = Object.entries(sets).map(([name, s]) => [name, orders.map(a => laws.renyiEntropy(s, a, both))]);
    const seen = curves.flatMap(([, c]) => c.filter((v, i) => Number.isFinite(v) && (both || Math.abs(orders[i] - 1) > 0.2)));
    const low = Math.min(...seen), high = Math.max(...seen), two = curves.map(([, c]) => c[80]);
    chart("entropy", {
      x: { low: 0, high: 3, label: "order α" },
      y: { low: low - 0.05 * (high - low), high: high + 0.05 * (high - low), label: "entropy, nats" },
      marks: (X, Y) => curves.map(([name, c]) => [c.slice(0, 40), c.slice(both ? 40 : 41)].map((part, side) => line(
        part.map((v, i) => [X(orders[i + (side ? (both ? 40 : 41) : 0)]), Y(v)]).filter(([, v]) => Math.abs(v) < 4 * HIGH), name)).join("")).join(""),
      words: `At order 2: full fine-tuning <b>${number(two[0])}</b>, LoRA <b>${number(two[1])}</b>, spectrum `
        + `${both ? "divided by its sum" : "as printed, which diverges at order 1"}.`,
    });
  }

  function drawAngles() {
    const { rank, cosine } = state, grid = range(60, i => (0.995 * i) / 59), law = grid.map(c => laws.cosineLaw(rank, c));
    const [mean, absolute] = laws.cosineLaw(rank, cosine);
    chart("angles", {
      x: { low: 0, high: 1, label: "cosine of the two activations" },
      y: { low: 0, high: 1.02, label: "cosine LoRA sees" },
      marks: (X, Y) => line([[X(0), Y(0)], [X(1), Y(1)]], "full")
        + line(grid.map((c, i) => [X(c), Y(law[i][0])]), "lora")
        + line(grid.map((c, i) => [X(c), Y(law[i][1])]), "lora dashed")
        + [mean, absolute].map(v => `<circle class="here" cx="${X(cosine)}" cy="${Y(v)}" r="4"/>`).join(""),
      words: `At cosine ${number(cosine)} rank ${rank} sees <b>${number(mean)}</b> in the mean (solid) and <b>${number(absolute)}</b> `
        + "in absolute value (dashed). Full fine-tuning sees the cosine itself.",
    });
  }

  function draw() {
    const p = laws.plan(state);
    const place = high => `up to about <b>${number(high)}</b> times full fine-tuning's`;
    document.getElementById("reading").innerHTML =
      `s = ${number(p.scaling)}, σ² = ${number(p.variance)}. LoRA's kernel is ${place(p.order[1])} on any data, ${place(p.orderOnData[1])} `
      + `on such data. First step beside full fine-tuning's: ${number(p.sgd)} under SGD, ${number(p.adam)} under Adam.`;
    drawSpectrum(p);
    drawPlane(p);
    drawDigits();
    drawAngles();
  }

  // A touch or a click in the plane sets rank and dimension, as the two sliders do.
  document.querySelector("#plane > svg").addEventListener("click", event => {
    const box = event.currentTarget.getBoundingClientRect(), back = (share, { low, high }) =>
      Math.round(low * (high / low) ** Math.min(1, Math.max(0, share)));
    const [u, v] = [((event.clientX - box.x) / box.width) * WIDE, ((event.clientY - box.y) / box.height) * HIGH];
    state.rank = back((u - LEFT) / (WIDE - RIGHT - LEFT), plane.x);
    state.dimension = back((HIGH - BOTTOM - v) / (HIGH - BOTTOM - TOP), plane.y);
    changed();
  });
  document.getElementById("again").addEventListener("click", () => { state.seed += 1; changed(); });
  document.addEventListener("input", event => { if (event.target.form === form) readForm(event.target); });
  form.addEventListener("submit", event => event.preventDefault());
  window.addEventListener("hashchange", () => { readAddress(); draw(); });
  readAddress();
  draw();
});
