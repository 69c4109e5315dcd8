// A link to a proof opens the dropdown that holds it.
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const dropdown = target && target.closest("details");
  if (dropdown && !dropdown.open) {
    dropdown.open = true;
    target.scrollIntoView();
  }
}
window.addEventListener("DOMContentLoaded", openTarget);
window.addEventListener("hashchange", openTarget);
