// A team's own use. Its token stays in this tab and goes out in a header alone; texts enter the page as text alone.
"use strict";

const KEPT_AS = "team-token";
const SVG = "http://www.w3.org/2000/svg";
const UNKNOWN_TOKEN = "This token is not known here: it may be mistyped, revoked or expired. Who administers this service can give you one.";
const UNREACHABLE = "TokenRouter does not answer. Check your connection, and try again.";

const exact = new Intl.NumberFormat("en-US");
const percent = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
const dayOfUtc = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", timeZone: "UTC" });
const byId = (id) => document.getElementById(id);

let token = sessionStorage.getItem(KEPT_AS) ?? "";

class Refusal extends Error {
  constructor(message, isOfToken) {
    super(message);
    this.isOfToken = isOfToken;
  }
}

// A number in few characters, as the panel and all messages write it: figures.py has the same rule.
const SCALES = [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]];

function brief(number) {
  const [letter, size] = SCALES.find(([, size]) => Math.abs(number) >= size * 0.9995) ?? ["", 0];
  if (size === 0) return number.toFixed(0);
  return exact.format((Math.sign(number) * Math.floor((Math.abs(number) / size) * 10 + 0.5)) / 10) + letter;
}

// Making elements

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function drawn(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

// A column is its heading, its cells' class, and what stands beside its cells where a phone shows rows as cards.
function table(label, columns, rows, kind = "") {
  const head = columns.map(([text, kind]) => element("th", { scope: "col", className: kind ?? "" }, text));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell, at) => tableCell(cell, ...columns[at].slice(1)))));
  const made = element("table", { className: `rows ${kind}` }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  const region = element("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: label }, made);
  return region;
}

function tableCell(cell, kind = "", beside = {}) {
  const made = element("td", { className: kind }, ...[cell].flat());
  Object.assign(made.dataset, beside);
  return made;
}

const counted = (number, thing) => `${exact.format(number)} ${thing}${number === 1 ? "" : "s"}`;

const onDay = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const atTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

const short = (tokens) => element("span", { className: "num", title: counted(tokens, "token") }, brief(tokens));

function moment(text, format = formatFor(new Date(text))) {
  const made = element("time", { dateTime: text, title: `${text.slice(0, 19).replace("T", " ")} UTC` });
  made.textContent = format.format(new Date(text));
  return made;
}

const duration = (ms) => (ms === null ? "–" : ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`);

const nothing = (title, text) => element("div", { className: "empty" }, element("strong", {}, title), element("p", {}, text));

// Asking

async function ask(path) {
  const headers = { Authorization: `Bearer ${token}` };
  const answer = await fetch(path, { headers, cache: "no-store", credentials: "omit", redirect: "error" }).catch(() => {
    throw new Refusal(UNREACHABLE, false);
  });
  const document = await answer.json().catch(() => null);
  if (answer.status === 401) throw new Refusal(UNKNOWN_TOKEN, true);
  if (answer.status === 403) throw new Refusal(document?.error?.message ?? "This team is disabled.", false);
  if (!answer.ok || document === null) {
    const message = document?.error?.message ?? "Try again soon.";
    throw new Refusal(`TokenRouter could not tell your usage (status ${answer.status}). ${message}`, false);
  }
  return document;
}

async function load() {
  say("Loading…");
  try {
    const usage = await ask("/v1/usage"); // first, so that a refusal is one refusal
    show(usage, await ask("/usage/data"));
    keep();
    say("");
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    refuse(error);
  }
}

function say(state, problem = "") {
  byId("state").textContent = state;
  byId("problem").textContent = problem;
  byId("problem").hidden = problem === "";
}

function keep() {
  sessionStorage.setItem(KEPT_AS, token);
  byId("token").value = "";
}

function refuse(refusal) {
  say("", refusal.message);
  if (refusal.isOfToken) forget();
  else if (byId("usage").hidden) askForToken();
}

function forget() {
  token = "";
  sessionStorage.removeItem(KEPT_AS);
  byId("with-token").checked = false;
  fillSnippets();
  for (const id of ["figures", "bar", "pace", "group", "chart", "by-model", "last-calls", "allowed"]) byId(id).replaceChildren();
  byId("team").textContent = "Usage of your team";
  askForToken();
}

function askForToken() {
  byId("usage").hidden = true;
  byId("session").hidden = true;
  byId("ask").hidden = false;
  byId("token").focus();
}

// Showing

function show(usage, details) {
  byId("ask").hidden = true;
  byId("session").hidden = false;
  byId("usage").hidden = false;
  byId("team").replaceChildren("Usage of ", element("bdi", {}, usage.team));
  showQuota(usage, details);
  showDays(usage.by_day);
  showModels(details.by_model);
  showCalls(details.calls);
  showExamples(usage.models, details.example_model);
}

function showQuota(usage, { pace, extra_tokens: extra, group, currency }) {
  const limited = usage.quota_tokens !== null;
  const figures = [["Used", usage.used_tokens], ["Held", usage.held_tokens, "by calls in flight"]];
  const more = extra ? ["and ", short(extra), " extra"] : undefined;
  if (limited) figures.push(["Left", usage.remaining_tokens], ["Quota", usage.quota_tokens, more]);
  byId("figures").replaceChildren(...figures.map(([name, tokens, note]) => figure(name, short(tokens), note)));
  if (!limited) byId("figures").append(figure("Quota", "unlimited"));
  const budget = usage.budget === null ? undefined : ["of ", money(usage.budget, currency)];
  const isTold = usage.cost !== null && (usage.cost !== "0" || budget);
  if (isTold) byId("figures").append(figure(budget ? "Spent" : "Cost", money(usage.cost, currency), budget));
  byId("bar").replaceChildren(...(limited ? [quotaBar(usage, extra)] : []));
  byId("pace").replaceChildren(...paceWords(usage, pace));
  byId("group").replaceChildren(...(group ? groupWords(group) : []));
}

// What all teams of the group share: calls have to fit that too.
function groupWords(group) {
  const words = ["Your team is in the group ", element("bdi", {}, group.name), ". "];
  if (group.quota_tokens === null) return [element("p", {}, ...words)];
  const figures = ["Its teams share ", short(group.quota_tokens + group.extra_tokens), " tokens, of which ", short(group.remaining_tokens), " are left. "];
  const renews = group.renews_at === null ? [] : ["They renew on ", moment(group.renews_at, atTime), "."];
  const bar = element("div", { className: "wide-bar" }, quotaBar(group, group.extra_tokens));
  return [element("p", {}, ...words, ...figures, ...renews), bar];
}

function money(amount, currency) {
  const digits = Number(amount) > 0 && Number(amount) < 0.01 ? { maximumSignificantDigits: 2 } : {};
  const shown = new Intl.NumberFormat("en-US", { style: "currency", currency, ...digits }).format(Number(amount));
  return element("span", { className: "num", title: `${amount} ${currency}` }, shown);
}

function figure(name, value, note) {
  const shown = note ? [value, element("small", {}, ...[note].flat())] : [value];
  return element("div", { className: "figure" }, element("dt", {}, name), element("dd", {}, ...shown));
}

function quotaBar(usage, extra) {
  const allowance = usage.quota_tokens + extra;
  const share = (tokens) => (allowance ? Math.min(100, (100 * tokens) / allowance) : 100);
  const used = share(usage.used_tokens);
  const taken = share(usage.used_tokens + usage.held_tokens);
  const bar = (kind, width) => drawn("rect", { class: `bar-${kind}`, width: `${width}%`, height: 10, rx: 5 });
  const state = used >= 100 ? " bar-full" : taken >= 80 ? " bar-near" : "";
  const label = `${Math.round(used)} % of the quota used, ${Math.round(taken - used)} % held`;
  const attributes = { class: `bar${state}`, role: "img", "aria-label": label, width: "100%", height: 10 };
  return drawn("svg", attributes, bar("all", 100), bar("held", taken), bar("used", used));
}

function paceWords(usage, pace) {
  const renews = usage.renews_at === null ? [] : ["It renews on ", moment(usage.renews_at, atTime), "."];
  if (usage.remaining_tokens === 0) {
    const until = usage.renews_at === null ? "is raised or reset." : "renews, is raised or reset. ";
    return [`Nothing is left: calls are refused until your quota ${until}`, ...renews];
  }
  if (pace === null) return renews;
  const average = ["At the pace of the last 7 days, ", short(pace.tokens_per_day), " tokens a day, "];
  const ten = ["it lasts for more than ten years. "];
  const lasts = pace.lasts_until === null ? ten : ["it lasts until ", moment(pace.lasts_until, onDay), ". "];
  return [...average, ...lasts, ...renews];
}

function showDays(days) {
  const used = days.some((day) => day.requests > 0);
  byId("days-table").hidden = !used;
  if (!used) {
    byId("chart").replaceChildren(nothing("No calls in the last 30 days", "Your first call will stand here; an example is below."));
    return;
  }
  const drawing = days.some((day) => day.total_tokens > 0)
    ? daysChart(days, Math.max(300, byId("chart").clientWidth))
    : nothing("No tokens were used in the last 30 days", "A call that is refused uses none.");
  byId("chart").replaceChildren(drawing);
  const rows = days.toReversed().map((day) => [day.date, exact.format(day.requests), exact.format(day.total_tokens)]);
  const columns = [["Day", "when"], ["Calls", "num"], ["Tokens", "num"]];
  byId("days-table").replaceChildren(byId("days-table").querySelector("summary"), table("Table of tokens a day", columns, rows));
}

// The nearest of 1, 2 and 5 times a power of ten, so that at most five lines reach the highest day.
function scaleStep(highest) {
  const power = 10 ** Math.floor(Math.log10(Math.max(highest, 5) / 5));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step * 5 >= highest);
}

function daysChart(days, width) {
  const [left, right, top, bottom, height] = [44, 6, 8, 22, 220];
  const highest = Math.max(...days.map((day) => day.total_tokens));
  const step = scaleStep(highest);
  const lines = Math.max(1, Math.ceil(highest / step));
  const y = (tokens) => height - bottom - (tokens / (lines * step)) * (height - bottom - top);
  const slot = (width - left - right) / days.length;
  const label = "Tokens a day in the last 30 days; the table below has the figures";
  const chart = drawn("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const scale = drawn("g", { class: "axis y" });
  for (let line = 0; line <= lines; line += 1) {
    scale.append(drawn("path", { class: "line", d: `M${left} ${y(line * step)}H${width - right}` }));
    scale.append(drawn("text", { x: left - 6, y: y(line * step) + 4 }, brief(line * step)));
  }
  const bars = drawn("g", { class: "color-0" });
  const names = drawn("g", { class: "axis x" });
  const every = width < 480 ? 7 : 5;
  days.forEach((day, at) => {
    const x = left + at * slot;
    const name = dayOfUtc.format(new Date(day.date));
    const title = `${name}: ${counted(day.total_tokens, "token")}, ${counted(day.requests, "call")}`;
    const size = { x: x + slot * 0.12, width: slot * 0.76, y: y(day.total_tokens), height: height - bottom - y(day.total_tokens) };
    bars.append(drawn("g", { class: "bar" }, drawn("rect", { class: "rect", ...size }), drawn("title", {}, title)));
    const place = at === days.length - 1 ? { class: "last", x: width - right } : { x: x + slot / 2 };
    if ((days.length - 1 - at) % every === 0) names.append(drawn("text", { ...place, y: height - 6 }, name));
  });
  chart.append(scale, bars, names);
  return chart;
}

function showModels(models) {
  const all = models.reduce((sum, use) => sum + use.total_tokens, 0);
  const rows = models.map((use) => [
    use.model || element("span", { className: "muted" }, "no model named"),
    exact.format(use.requests),
    exact.format(use.errors),
    exact.format(use.total_tokens),
    all ? `${percent.format((100 * use.total_tokens) / all)} %` : "–",
  ]);
  const numbers = ["Calls", "Failed", "Tokens", "Share"].map((name) => [name, "num wide", { label: name }]);
  const columns = [["Model", "model wide"], ...numbers];
  byId("by-model").replaceChildren(rows.length ? table("Use by model", columns, rows, "cards") : nothing("No calls in the last 30 days", ""));
}

function showCalls(calls) {
  const columns = [
    ["Time", "when first"],
    ["Model", "model"],
    ["Status", "status first"],
    ["Tokens", "num", { unit: "tokens" }],
    ["Counted", "muted", { label: "Counted" }],
    ["First byte", "num", { label: "First byte" }],
    ["Latency", "num", { label: "Latency" }],
    ["Endpoint", "muted endpoint"],
  ];
  const rows = calls.map((call) => [
    moment(call.created_at),
    call.model || "–",
    statusCell(call),
    call.status === "pending" ? "–" : tokensCell(call),
    { provider: "provider", estimated: "estimated" }[call.usage_source] ?? "–",
    duration(call.first_byte_ms),
    duration(call.latency_ms),
    [call.endpoint.replace("/v1", ""), ...(call.stream ? [" ", element("small", {}, "stream")] : [])],
  ]);
  byId("last-calls").replaceChildren(rows.length ? table("Last calls", columns, rows, "cards cards-calls") : nothing("No calls yet", "Your first call will stand here."));
}

function statusCell(call) {
  const tag = element("span", { className: `tag tag-${call.status_tone}` }, call.status_words);
  const repeats = call.repeats > 1 ? [` × ${exact.format(call.repeats)}`] : [];
  return call.error_code ? [tag, ...repeats, " ", element("small", {}, call.error_code)] : [tag, ...repeats];
}

function tokensCell(call) {
  const title = `${exact.format(call.prompt_tokens)} prompt, ${exact.format(call.completion_tokens)} completion`;
  return element("span", { title }, exact.format(call.charged_tokens));
}

// The examples, with a model that the team may call

function showExamples(models, model) {
  const words = models.map((name) => (name === "*" ? "any model" : name.endsWith("*") ? `those that begin with ${name.slice(0, -1)}` : name));
  byId("allowed").textContent = words.join(", ") || "none";
  exampleModel = model;
  fillSnippets();
}

const snippets = [...byId("snippets").querySelectorAll("pre")].map((pre) => [pre, pre.textContent]);
let exampleModel = byId("snippets").dataset.model;

function fillSnippets() {
  const shown = byId("with-token").checked ? token : "YOUR_TEAM_TOKEN";
  for (const [pre, text] of snippets) {
    pre.textContent = text
      .replace("YOUR_TEAM_TOKEN", () => shown)
      .replace(`"${byId("snippets").dataset.model}"`, () => JSON.stringify(exampleModel));
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim().replace(/^bearer\s+/i, "");
  if (/^[\x21-\x7e]+$/.test(token)) load();
  else say("", UNKNOWN_TOKEN);
});
byId("refresh").addEventListener("click", load);
byId("forget").addEventListener("click", () => {
  say("The token is forgotten.");
  forget();
});
byId("with-token").addEventListener("change", fillSnippets);

if (token) load();
else askForToken();
