// The front page's calculator: what a LoRA configuration implies before its first step. All formulas are in laws.js.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("calculator");
  const answers = Object.fromEntries([...form.querySelectorAll("[data-answer]")].map(e => [e.dataset.answer, e]));
  const UNSURE = 0.01; // a bound on the probability above this is no guarantee

  function read() {
    const whole = Object.fromEntries(
      ["rank", "width", "other"].map(name => [name, form.elements[name].valueAsNumber]),
    );
    const wrong = Object.entries(whole).find(([, value]) => !counts(value));
    if (wrong) return { error: `The ${{ other: "other rank", width: "hidden size" }[wrong[0]] ?? wrong[0]} must be a whole number above 0.` };
    const { rank, width, other } = whole, alpha = form.elements.alpha.valueAsNumber;
    const long = Object.entries({ rank, "other rank": other }).find(([, value]) => value > width);
    if (long) return { error: `The ${long[0]} is at most the hidden size, ${width}.` };
    if (!(alpha > 0 && alpha < Infinity)) return { error: "Alpha must be a number above 0." };
    const tokens = form.elements.dimension.valueAsNumber, dimension = counts(tokens) ? Math.min(tokens, width) : width;
    return {
      setting: { rank, alpha, width, dimension, draw: form.elements.draw.value, stabilised: form.elements.stabilised.checked },
      other,
      known: counts(tokens),
    };
  }

  const counts = value => Number.isInteger(value) && value >= 1;

  const number = laws.shown;
  const badge = (word, style) => `<span class="verdict verdict-${style}">${word}</span>`;

  function order([, high], doubt, draw, exact) {
    const ratio = `in some direction LoRA's kernel is up to <b>${number(high)}</b> times full fine-tuning's`;
    if (high > 1) return `${badge("not guaranteed", "fails")} ${ratio}.`;
    if (draw === "orthonormal") {
      return exact
        ? `${badge("guaranteed", "holds")} ${ratio}, in every draw.`
        : `${badge("expected", "amended")} ${ratio}, in wide layers.`;
    }
    const odds = doubt < 1e-9 ? "below 10<sup>−9</sup>" : `at most ${number(doubt)}`;
    const sure = draw === "gaussian" && doubt <= UNSURE ? badge("guaranteed", "holds") : badge("expected", "amended");
    return `${sure} ${ratio}; probability that a Gaussian draw breaks it ${odds}.`;
  }

  function show() {
    const { error, setting, other, known } = read();
    form.classList.toggle("wrong", Boolean(error));
    if (error) {
      for (const [name, element] of Object.entries(answers)) element.textContent = name === "step" ? error : "";
      return;
    }
    const p = laws.plan(setting), [sgd, adam] = laws.alphaAt(setting, other);
    const above = p.largestDimension ? `Above dimension ${p.largestDimension} it` : "It";
    const limit = p.largestDimension === setting.width ? "" : ` ${above} depends on the gradients.`;
    const makesUp = Math.max(p.sgd, p.adam) < 1 ? " A larger learning rate makes up for it." : "";
    answers.everywhere.innerHTML = order(p.order, p.doubt, setting.draw, true);
    answers.data.innerHTML = known
      ? order(p.orderOnData, p.doubtOnData, setting.draw, p.scaling <= 1) + limit
      : "The number of tokens must be a whole number above 0.";
    answers.step.innerHTML =
      `<b>${number(p.sgd)}</b> of full fine-tuning's under SGD, about <b>${number(p.adam)}</b> under Adam, at the same learning rate.${makesUp}`;
    answers.kept.innerHTML = `alpha <b>${number(sgd)}</b> under SGD, <b>${number(adam)}</b> under Adam.`;
    const state = { ...setting, stabilised: Number(setting.stabilised) };
    form.querySelector("a[href*='explorer']").href = `explorer.html#${new URLSearchParams(state)}`;
  }

  form.addEventListener("input", show);
  form.addEventListener("submit", event => event.preventDefault());
  show();
});
