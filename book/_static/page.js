// A link to a proof opens the dropdown that holds it; printing opens all; what scrolls can be reached by keyboard.
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const dropdown = target && target.closest("details");
  if (dropdown && !dropdown.open) {
    dropdown.open = true;
    target.scrollIntoView();
  }
}

function focusScrolling() {
  for (const box of document.querySelectorAll("article :is(pre, div.math, mjx-container, .table-wrapper, .claim-table, .text_html, dt.sig)")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== "visible";
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

window.addEventListener("DOMContentLoaded", openTarget);
window.addEventListener("hashchange", openTarget);
window.addEventListener("load", () => {
  const typeset = window.MathJax && MathJax.startup ? MathJax.startup.promise : Promise.resolve();
  typeset.then(focusScrolling);
});
window.addEventListener("resize", focusScrolling);
document.addEventListener("toggle", focusScrolling, true);
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
