// The laws of lorantk.spectra and lorantk.audit once more, for pages that compute without a kernel or a network.
// tests/book/test_laws.py compares each with Python's on a grid, to 1e-9.
const laws = (() => {
  const sum = values => values.reduce((a, b) => a + b, 0);

  // Variance of the entries of A: PEFT's two draws, orthonormal rows, or Gaussian entries of variance `level` / width.
  function variance(draw, rank, width, level) {
    return { peft: 1 / (3 * width), gaussian: 1 / rank ** 2, orthonormal: 1 / width, level: level / width }[draw];
  }

  const scaling = (rank, alpha, stabilised) => alpha / (stabilised ? Math.sqrt(rank) : rank);

  // [c-, c+] with c- K_full <= K_LoRA <= c+ K_full at B = 0 on data that span `dimension` directions.
  function orderInterval(rank, dimension, variance, s) {
    const low = Math.max(0, Math.sqrt(rank) - Math.sqrt(dimension)), high = Math.sqrt(rank) + Math.sqrt(dimension);
    return [s ** 2 * variance * low ** 2, s ** 2 * variance * high ** 2];
  }

  // The same for orthonormal rows: cosines of two random subspaces of R^width (Wachter, 1980); 1 where they must meet.
  function orthonormalInterval(rank, dimension, width, s) {
    const root = Math.sqrt(rank * (width - dimension)), other = Math.sqrt(dimension * (width - rank));
    const high = rank + dimension >= width ? 1 : ((root + other) / width) ** 2;
    const low = rank === width ? 1 : rank > dimension ? ((root - other) / width) ** 2 : 0;
    return [s ** 2 * low, s ** 2 * high];
  }

  // Bound on the probability that a Gaussian draw breaks K_LoRA <= K_full on such data (Davidson and Szarek, 2001).
  function orderDoubt(rank, dimension, variance, s) {
    const slack = 1 / (s * Math.sqrt(variance)) - Math.sqrt(rank) - Math.sqrt(dimension);
    return slack > 0 ? Math.exp(-(slack ** 2) / 2) : 1;
  }

  // What rank, alpha, width, draw and the dimension of the data imply before the first step: lorantk.audit.plan.
  function plan({ rank, alpha, width, draw, level = 1, stabilised = false, dimension = width }) {
    const s = scaling(rank, alpha, stabilised), sigma2 = variance(draw, rank, width, level);
    const order = d =>
      draw === "orthonormal" ? orthonormalInterval(rank, d, width, s) : orderInterval(rank, d, sigma2, s);
    let largest = 0, beyond = width + 1;
    while (beyond - largest > 1) {
      const middle = (largest + beyond) >> 1;
      if (order(middle)[1] <= 1) largest = middle;
      else beyond = middle;
    }
    return {
      scaling: s, variance: sigma2, order: order(width), orderOnData: order(dimension), largestDimension: largest,
      sgd: s ** 2 * rank * sigma2, adam: s * rank * Math.sqrt(sigma2 / width), angle: cosineLaw(rank, 0)[1],
      doubt: orderDoubt(rank, width, sigma2, s), doubtOnData: orderDoubt(rank, dimension, sigma2, s),
    };
  }

  // The alpha at which another rank's first step lowers the loss as much: [under SGD, under Adam].
  function alphaAt(setting, rank) {
    const here = plan(setting), there = plan({ ...setting, rank, alpha: 1 });
    return [Math.sqrt(here.sgd / there.sgd), here.adam / there.adam];
  }

  function marchenkoPasturEdges(rank, width, variance) {
    const ratio = Math.sqrt(rank / width);
    return [variance * width * (1 - ratio) ** 2, variance * width * (1 + ratio) ** 2];
  }

  // Density at x of the nonzero eigenvalues of A^T A.
  function marchenkoPasturDensity(x, rank, width, variance) {
    const [low, high] = marchenkoPasturEdges(rank, width, variance);
    const inside = (high - x) * (x - low);
    return inside > 0 ? Math.sqrt(inside) / (2 * Math.PI * variance * rank * x) : 0;
  }

  // [mean of cos(A a, A a'), mean of its absolute value] over Gaussian A, for activations whose cosine is given.
  function cosineLaw(rank, cosine) {
    const mean = Math.sign(cosine) * meanCosine(rank, Math.abs(cosine)), square = cosine ** 2;
    if (rank === 1 || square === 1) return [mean, 1];
    const half = rank / 2, terms = Math.floor((half * square + 60 * Math.sqrt(rank) + 60) / (1 - square)) + 1;
    if (terms > 2 ** 22) return [mean, Math.abs(mean)];
    let term = 1, total = 1, log = half * Math.log1p(-square) - Math.log(Math.sqrt(Math.PI) * gammaRatio(rank));
    for (let k = 0; k < terms && square > 0; k++) {
      term *= (half + k) ** 2 / ((0.5 + k) * (half + 0.5 + k)) * square;
      total += term;
      if (total > 1e200) [term, total, log] = [term * 1e-200, total * 1e-200, log + 200 * Math.LN10];
    }
    return [mean, Math.exp(log + Math.log(total))];
  }

  function meanCosine(rank, cosine) {
    if (cosine === 0 || cosine === 1) return cosine;
    const alpha = Math.asin(cosine), { nodes, weights } = gaussLegendre();
    const integral = sum(nodes.map((node, i) => {
      const v = (node + 1) / 2, sine = Math.sin(alpha * (1 - v ** 2)) / cosine;
      return weights[i] * alpha * v * Math.max(0, (1 - sine) * (1 + sine)) ** ((rank - 1) / 2);
    }));
    return 2 / Math.sqrt(Math.PI) * gammaRatio(rank) * integral;
  }

  // Gamma((rank + 1) / 2) / Gamma(rank / 2), by its recursion in steps of two.
  function gammaRatio(rank) {
    let ratio = rank % 2 ? 1 / Math.sqrt(Math.PI) : Math.sqrt(Math.PI) / 2;
    for (let r = rank % 2 || 2; r < rank; r += 2) ratio *= (r + 1) / r;
    return ratio;
  }

  let rule = null;

  // Gauss and Legendre's rule with 400 nodes: roots of the Legendre polynomial by Newton's method.
  function gaussLegendre() {
    if (rule) return rule;
    const n = 400, nodes = [], weights = [];
    for (let i = 0; i < n; i++) {
      let x = Math.cos(Math.PI * (i + 0.75) / (n + 0.5)), slope = 0;
      for (let step = 0; step < 8; step++) {
        let [p, before] = [x, 1];
        for (let k = 2; k <= n; k++) [p, before] = [((2 * k - 1) * x * p - (k - 1) * before) / k, p];
        slope = n * (x * p - before) / (x ** 2 - 1);
        x -= p / slope;
      }
      nodes.push(x);
      weights.push(2 / ((1 - x ** 2) * slope ** 2));
    }
    return (rule = { nodes, weights });
  }

  // Regularised information bits in nats: 1/2 sum log(1 + eigenvalue / tau).
  const informationBits = (eigenvalues, tau) => 0.5 * sum(eigenvalues.map(v => Math.log1p(Math.max(v, 0) / tau)));

  // Renyi entropy of order alpha in nats; at order 1 Shannon's if normalised, else the limit from below.
  function renyiEntropy(eigenvalues, alpha, normalised) {
    const floor = eigenvalues.length * Number.EPSILON * Math.max(...eigenvalues);
    const kept = eigenvalues.filter(v => v > floor), total = sum(kept);
    const logs = kept.map(v => Math.log(v) - (normalised ? Math.log(total) : 0));
    if (alpha === Infinity) return -Math.max(...logs);
    if (alpha === 1) return normalised ? -sum(logs.map(l => Math.exp(l) * l)) : Math.sign(Math.log(total)) * Infinity;
    const largest = Math.max(...logs.map(Math.abs));
    if (normalised && Math.abs(alpha - 1) * largest < 0.5) {
      return Math.log1p(sum(logs.map(l => Math.exp(l) * Math.expm1((alpha - 1) * l)))) / (1 - alpha);
    }
    const top = Math.max(...logs.map(l => alpha * l));
    return (top + Math.log(sum(logs.map(l => Math.exp(alpha * l - top))))) / (1 - alpha);
  }

  // Eigenvalues, ascending, of the symmetric tridiagonal matrix with these entries: bisection on Sturm's count.
  function tridiagonalEigenvalues(diagonal, off) {
    const radius = diagonal.map((_, i) => Math.abs(off[i - 1] ?? 0) + Math.abs(off[i] ?? 0));
    const least = Math.min(...diagonal.map((d, i) => d - radius[i]));
    const most = Math.max(...diagonal.map((d, i) => d + radius[i]));
    const below = x => {
      let pivot = 1, count = 0;
      diagonal.forEach((d, i) => {
        pivot = d - x - (i ? off[i - 1] ** 2 / pivot : 0) || Number.MIN_VALUE;
        if (pivot < 0) count++;
      });
      return count;
    };
    return diagonal.map((_, index) => {
      let [low, high] = [least, most];
      for (let step = 0; step < 60; step++) {
        const middle = (low + high) / 2;
        if (below(middle) > index) high = middle;
        else low = middle;
      }
      return (low + high) / 2;
    });
  }

  // Nonzero eigenvalues of A^T A for one rank x width draw of Gaussian entries, exactly in law, from a bidiagonal matrix
  // of chi variables (Dumitriu and Edelman, 2002). `random` returns uniform numbers in (0, 1).
  function wishartEigenvalues(rank, width, variance, random) {
    const [m, n] = [Math.min(rank, width), Math.max(rank, width)];
    const chi2 = k => sum(Array.from({ length: k }, () => {
      return -2 * Math.log(1 - random()) * Math.cos(2 * Math.PI * random()) ** 2;
    }));
    const main = Array.from({ length: m }, (_, i) => chi2(n - i));
    const side = Array.from({ length: m - 1 }, (_, i) => chi2(m - 1 - i));
    const diagonal = main.map((d, i) => d + (i ? side[i - 1] : 0));
    const off = side.map((e, i) => Math.sqrt(e * main[i]));
    return tridiagonalEigenvalues(diagonal, off).map(v => variance * v);
  }

  // Uniform numbers in [0, 1) from a seed (mulberry32, public domain, Tommy Ettinger).
  function uniform(seed) {
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  // Three significant digits as HTML: 12, 0.0139, or 3·10 with its power raised.
  function shown(value) {
    const size = Math.abs(value), [digits, power] = value.toExponential(1).split("e");
    const plain = value === 0 || (size >= 1e-4 && size < 1e6);
    const said = plain ? String(Number(value.toPrecision(3))) : `${Number(digits)}·10<sup>${Number(power)}</sup>`;
    return said.replaceAll("-", "−");
  }

  return {
    variance, scaling, shown, orderInterval, orthonormalInterval, orderDoubt, plan, alphaAt, marchenkoPasturEdges,
    marchenkoPasturDensity, cosineLaw, informationBits, renyiEntropy, tridiagonalEigenvalues, wishartEigenvalues, uniform,
  };
})();
