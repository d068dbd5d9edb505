// Comforts on top of pages that work without them.
"use strict";

const PATIENCE_MS = 20_000;
const formats = {
  clock: { timeStyle: "short" },
  plain: { dateStyle: "medium", timeStyle: "short" },
  plainThisYear: { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" },
  today: { timeStyle: "medium" },
  thisYear: { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" },
  earlier: { dateStyle: "medium", timeStyle: "medium" },
};
for (const name in formats) formats[name] = new Intl.DateTimeFormat(undefined, formats[name]);

function formatFor(moment, { seconds, clock } = {}) {
  const now = new Date();
  const isThisYear = moment.getFullYear() === now.getFullYear();
  if (clock !== undefined && moment.toDateString() === now.toDateString()) return formats.clock;
  if (seconds === undefined) return isThisYear ? formats.plainThisYear : formats.plain;
  if (moment.toDateString() === now.toDateString()) return formats.today;
  return isThisYear ? formats.thisYear : formats.earlier;
}

function showLocalTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-day])")) {
    const moment = new Date(time.dateTime);
    time.textContent = formatFor(moment, time.dataset).format(moment);
  }
}

// On a phone the rows come first: filters that are seldom wanted are shown when asked for.
function showFewFilters(form) {
  const more = form.querySelector("[data-more-filters]");
  if (!matchMedia("(max-width: 640px)").matches) return;
  form.classList.add("few");
  more.hidden = false;
  more.addEventListener("click", () => {
    form.classList.remove("few");
    more.hidden = true;
    form.querySelector(".rare input, .rare select").focus();
  });
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  button.dataset.words ??= button.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch {
    // without https there is no clipboard: the text is marked, to be copied by hand
    source.closest("details")?.setAttribute("open", ""); // what is not shown cannot be marked
    getSelection().selectAllChildren(source);
    button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl-C";
  }
  setTimeout(() => (button.textContent = button.dataset.words), 2500);
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
    const fitting = form.querySelector("input[name=all]");
    const chosen = fitting?.checked ? +fitting.dataset.total : boxes().filter((box) => box.checked).length;
    for (const button of form.querySelectorAll("button[data-needs-rows]")) button.disabled = chosen === 0;
    form.querySelector("[data-count]").textContent = chosen === 0 ? "Select teams to act on them" : `${chosen.toLocaleString("en")} selected`;
    all.checked = chosen > 0 && chosen >= boxes().length;
    all.indeterminate = chosen > 0 && chosen < boxes().length;
    for (const box of boxes()) box.disabled = Boolean(fitting?.checked);
  };
  all.closest("th").hidden = false;
  all.addEventListener("change", () => {
    const fitting = form.querySelector("input[name=all]");
    if (fitting && !all.checked) fitting.checked = false;
    for (const box of boxes()) box.checked = all.checked;
    update();
  });
  for (const box of boxes()) box.addEventListener("change", update);
  form.querySelector("input[name=all]")?.addEventListener("change", update);
  update();
}

// After a quota was saved the page is where it was, the field is in hand again, and what came of it is in view.
function rememberPlace(event) {
  const field = event.target.querySelector("input[name=quota]");
  const place = { path: location.pathname, top: scrollY, field: field?.id, fieldTop: field?.getBoundingClientRect().top };
  sessionStorage.setItem("place", JSON.stringify(place));
}

function backToPlace() {
  const place = JSON.parse(sessionStorage.getItem("place") ?? "null");
  sessionStorage.removeItem("place");
  if (place?.path !== location.pathname) return;
  const field = document.getElementById(place.field);
  const moved = field ? field.getBoundingClientRect().top + scrollY - place.top - place.fieldTop : 0;
  field?.focus({ preventScroll: true });
  scrollTo({ top: place.top + moved, behavior: "instant" });
  for (const note of document.querySelectorAll("main > .note")) note.classList.add("note-in-view");
}

// Times are meant in the reader's own zone, as they are shown, unless the page was opened with those of another one.
function nameZone(input) {
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  input.value ||= own;
  if (input.value !== own) return;
  for (const name of document.querySelectorAll("[data-zone-name]")) name.textContent = "";
}

// A page that stays open all day shows what is so now, except while somebody is doing something on it; and it says so
// where that cannot be had.
async function renew(main) {
  const asked = { headers: { "X-Requested-With": "fetch" }, redirect: "manual", signal: AbortSignal.timeout(PATIENCE_MS) };
  const answer = await fetch(location.href, asked);
  const isUsed = main.querySelector(":focus, details[open]") !== null || !getSelection().isCollapsed;
  if (answer.type === "opaqueredirect" && !isUsed) location.reload(); // the session is over: to the sign-in
  if (answer.status >= 400) return showNoContact(main, `The answer is status ${answer.status}.`);
  const page = await answer.text();
  showContact(main);
  if (!answer.ok || isUsed) return;
  const fresh = new DOMParser().parseFromString(page, "text/html").querySelector("main");
  main.replaceChildren(...fresh.childNodes);
  prepare(main);
  if (!("renewS" in fresh.dataset)) delete main.dataset.renewS;
}

function showContact(main) {
  lastContact = new Date();
  document.querySelector(".no-contact")?.remove();
  main.classList.remove("stale");
}

function showNoContact(main, why = "") {
  main.classList.add("stale");
  const isToday = lastContact.toDateString() === new Date().toDateString();
  const since = (isToday ? formats.clock : formats.plain).format(lastContact);
  const words = `No contact since ${since}. What this page shows is as of then. ${why}`;
  const banner = document.querySelector(".no-contact") ?? document.createElement("div");
  if (banner.textContent === words) return; // it was read out already
  banner.className = "banner banner-bad no-contact";
  banner.setAttribute("role", "alert");
  banner.textContent = words;
  main.before(banner);
}

async function keepRenewing(main) {
  clearTimeout(renewal);
  if (!document.hidden) await renew(main).catch(() => showNoContact(main));
  if ("renewS" in main.dataset) renewal = setTimeout(keepRenewing, 1000 * main.dataset.renewS, main);
}

// A second press, while the first is on its way, would be answered in place of it, and the token be lost.
function sendOnce(form) {
  form.addEventListener("submit", (event) => {
    if ("sent" in form.dataset) event.preventDefault();
    form.dataset.sent = "";
  });
  addEventListener("pageshow", () => delete form.dataset.sent);
}

function prepare(root) {
  showLocalTimes(root);
  for (const input of root.querySelectorAll("[data-zone-value]")) nameZone(input);
  for (const button of root.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }
  for (const button of root.querySelectorAll("button[data-print]")) {
    button.hidden = false;
    button.addEventListener("click", () => print());
  }
  for (const element of root.querySelectorAll("[data-fill]")) fill(element).catch(() => {});
  for (const form of root.querySelectorAll("form[data-few-on-phones]")) showFewFilters(form);
  for (const form of root.querySelectorAll("form[data-bulk]")) watchSelection(form);
  for (const form of root.querySelectorAll("form[data-once]")) sendOnce(form);
  for (const form of root.querySelectorAll("form[data-keep-place]")) form.addEventListener("submit", rememberPlace);
  for (const region of root.querySelectorAll(".scroll[data-newest-right]")) region.scrollLeft = region.scrollWidth;
}

prepare(document);
backToPlace();
const main = document.querySelector("main[data-renew-s]");
let lastContact = new Date();
let renewal = main && setTimeout(keepRenewing, 1000 * main.dataset.renewS, main);
document.addEventListener("visibilitychange", () => {
  if (main && !document.hidden && Date.now() - lastContact > 1000 * main.dataset.renewS) keepRenewing(main);
});

// What stands above every page is asked for once a minute, while the page is looked at. What did not change is left alone:
// else it would be read out again.
async function renewBanner(place) {
  const asked = { headers: { "X-Requested-With": "fetch" }, redirect: "error", signal: AbortSignal.timeout(PATIENCE_MS) };
  const answer = await fetch(place.dataset.banner, asked);
  if (!answer.ok) return;
  const fresh = document.createElement("template");
  fresh.innerHTML = await answer.text();
  showLocalTimes(fresh.content);
  if (fresh.innerHTML.trim() !== place.innerHTML.trim()) place.replaceChildren(fresh.content);
}

function keepBanner(place) {
  clearTimeout(bannerTimer);
  if (!document.hidden) {
    bannerAt = Date.now();
    renewBanner(place).catch(() => {}); // without contact there is nothing new to show
  }
  bannerTimer = setTimeout(keepBanner, 1000 * place.dataset.bannerS, place);
}

const bannerPlace = document.querySelector("[data-banner]");
let bannerAt = Date.now();
let bannerTimer = bannerPlace && setTimeout(keepBanner, 1000 * bannerPlace.dataset.bannerS, bannerPlace);
document.addEventListener("visibilitychange", () => {
  if (bannerPlace && !document.hidden && Date.now() - bannerAt > 1000 * bannerPlace.dataset.bannerS) keepBanner(bannerPlace);
});

// A page that shows a new token came from a POST: reloading it must not make another one.
const settled = document.querySelector("[data-reload-as]");
if (settled) history.replaceState(null, "", settled.dataset.reloadAs);
