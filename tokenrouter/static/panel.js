// Comforts on top of pages that work without them.
"use strict";

const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function showLocalTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.textContent = zoned.format(new Date(time.dateTime));
  }
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    // without https there is no clipboard: the text is marked, to be copied by hand
    getSelection().selectAllChildren(source);
    button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2500);
}

async function fill(element) {
  const answer = await fetch(element.dataset.fill, { headers: { "X-Requested-With": "fetch" }, redirect: "error" });
  if (answer.ok) {
    element.innerHTML = await answer.text();
    showLocalTimes(element);
  }
}

function watchSelection(form) {
  const boxes = () => [...document.querySelectorAll(`input[name=rowid][form="${form.id}"]`)];
  const all = document.querySelector(`input[data-all="${form.id}"]`);
  const update = () => {
    const chosen = boxes().filter((box) => box.checked).length;
    for (const button of form.querySelectorAll("button[data-needs-rows]")) button.disabled = chosen === 0;
    form.querySelector("[data-count]").textContent = chosen === 0 ? "Select teams to act on them" : `${chosen} selected`;
    all.checked = chosen > 0 && chosen === boxes().length;
    all.indeterminate = chosen > 0 && chosen < boxes().length;
  };
  all.closest("th").hidden = false;
  all.addEventListener("change", () => {
    for (const box of boxes()) box.checked = all.checked;
    update();
  });
  for (const box of boxes()) box.addEventListener("change", update);
  update();
}

// Dates are meant in the reader's own time zone, as times are shown.
function nameZone(input) {
  input.value = Intl.DateTimeFormat().resolvedOptions().timeZone;
  for (const name of document.querySelectorAll("[data-zone-name]")) name.textContent = "";
}

showLocalTimes(document);
for (const input of document.querySelectorAll("[data-zone-value]")) nameZone(input);
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", () => copy(button));
}
for (const element of document.querySelectorAll("[data-fill]")) fill(element).catch(() => {});
for (const form of document.querySelectorAll("form[data-bulk]")) watchSelection(form);
for (const region of document.querySelectorAll(".scroll[data-newest-right]")) region.scrollLeft = region.scrollWidth;

// A page that shows a new token came from a POST: reloading it must not make another one.
const settled = document.querySelector("[data-reload-as]");
if (settled) history.replaceState(null, "", settled.dataset.reloadAs);
