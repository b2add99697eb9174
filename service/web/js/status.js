// The page at /status: what /metrics says, for people. It asks again every two seconds.

import { columns, line } from "./chart.js";
import { element, terms } from "./element.js";
import { Metrics } from "./exposition.js";
import { between, mean, quantile, shareWithin } from "./histogram.js";
import { History } from "./history.js";

const EVERY_MS = 2000;
const PATIENCE_MS = 10_000;
const REQUESTS = "fcn_request_duration_seconds";
const STAGES = ["decode", "queue", "infer", "render"];
const $ = (id) => document.getElementById(id);
const history = new History();

const percent = (share) => {
  if (share === null) return "–";
  const text = (100 * share).toFixed(share > 0.99 && share < 1 ? 2 : 1);
  // 99.996 % is not all.
  return `${share < 1 && text.startsWith("100") ? "99.99" : text.replace(/\.0$/, "")} %`;
};
const milliseconds = (s) =>
  s === null ? "–" : `${s < 0.01 ? (1000 * s).toFixed(1) : Math.round(1000 * s)} ms`;
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const mebibytes = (bytes) => `${whole.format(bytes / 2 ** 20)} MiB`;

/** A counter's increase, or a gauge's value where `before` is null. */
const increase = (now, before, name, wanted) =>
  now.sum(name, wanted) - (before?.sum(name, wanted) ?? 0);

const observed = (now, before, name, wanted) =>
  between(now.histogram(name, wanted), before?.histogram(name, wanted));

function span(seconds) {
  const [days, hours, minutes] = [86_400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds) % 60} s` : `${Math.floor(seconds)} s`;
}

function showCards(now, before, seconds) {
  const targetS = now.sum("fcn_latency_target_seconds");
  const requests = observed(now, before, REQUESTS);
  const share = shareWithin(requests, targetS);
  $("target-ms").textContent = milliseconds(targetS);
  $("within").textContent = percent(share);
  $("within").classList.toggle("late", share !== null && share < 0.99);
  const slo = (result) =>
    increase(now, before, "fcn_slo_images_total", { slo: "latency", result });
  const [good, bad] = [slo("good"), slo("bad")];
  $("within-note").textContent = good + bad
    ? `${percent(good / (good + bad))} of the ${whole.format(good + bad)} images held to it`
    : requests.count ? "no image so small that it is held to it" : "no image yet";
  $("rate").textContent = `${short.format(requests.count / seconds)} / s`;
  $("rate-note").textContent = `${whole.format(requests.count)} answered`;
  const waiting = now.sum("fcn_queue_depth");
  $("waiting").textContent = `${whole.format(waiting)} waiting`;
  $("waiting-note").textContent =
    `${whole.format(now.sum("fcn_inflight_requests"))} requests in work, ` +
    `${whole.format(now.sum("fcn_connections"))} HTTP connections`;
  const refused = increase(now, before, "fcn_rejected_total");
  const shareRefused = refused / (refused + requests.count || 1);
  $("refused").textContent = whole.format(refused);
  $("refused-note").textContent = refused ? `${percent(shareRefused)} of all` : "none";
}

function showLatency(now, before) {
  const requests = observed(now, before, REQUESTS);
  const targetS = now.sum("fcn_latency_target_seconds");
  columns($("latency"), requests, targetS);
  const at = (q) => milliseconds(quantile(requests, q));
  $("percentiles").textContent = requests.count
    ? `half ${at(0.5)}, 95 % ${at(0.95)}, 99 % ${at(0.99)}`
    : "none yet";
  $("latency").setAttribute(
    "aria-label",
    `${percent(shareWithin(requests, targetS))} of ${requests.count} requests took up to ` +
      `${milliseconds(targetS)}; half up to ${at(0.5)}, 99 % up to ${at(0.99)}`,
  );
}

function showPast() {
  const targetS = history.now.sum("fcn_latency_target_seconds");
  const steps = history.steps.map(([older, newer]) => {
    const requests = observed(newer, older, REQUESTS);
    const seconds = (newer.atMs - older.atMs) / 1000;
    return { rate: requests.count / seconds, share: shareWithin(requests, targetS) };
  });
  const rates = steps.map(({ rate }) => rate);
  const shares = steps.map(({ share }) => share);
  const most = Math.max(1, ...rates);
  $("past").replaceChildren(
    ...line("Requests a second", rates, most, short.format(rates.at(-1) ?? 0)),
    ...line(`Within ${milliseconds(targetS)}`, shares, 1, percent(shares.at(-1) ?? null)),
  );
}

function showStages(now, before) {
  const rows = STAGES.map((stage) => {
    const times = observed(now, before, "fcn_stage_duration_seconds", { stage });
    return { stage, meanS: mean(times), halfS: quantile(times, 0.5), mostS: quantile(times, 0.95) };
  });
  const totalS = rows.reduce((sum, { meanS }) => sum + (meanS ?? 0), 0) || 1;
  $("stage-bar").replaceChildren(
    ...rows.map(({ meanS }, index) => {
      const part = element("span");
      part.style.setProperty("--part", (meanS ?? 0) / totalS);
      part.dataset.stage = index;
      return part;
    }),
  );
  fill("stage-rows", rows, ({ stage, meanS, halfS, mostS }) => [
    stage, ...[meanS, halfS, mostS].map(milliseconds),
  ]);
  [...$("stage-rows").rows].forEach((row, index) => (row.cells[0].dataset.stage = index));
}

function showQueue(now, before) {
  fill("queue-rows", now.values("fcn_model_info", "model"), (model) => {
    const batches = observed(now, before, "fcn_batch_size", { model });
    return [
      model,
      whole.format(now.sum("fcn_queue_depth", { model })),
      whole.format(batches.sum),
      mean(batches) === null ? "–" : `${short.format(mean(batches))} on average`,
    ];
  });
}

/** Versions that serve, and those that could not be loaded. */
function showModels(now) {
  const key = ({ model, version }) => ({ model, version });
  const serving = now.rows("fcn_model_info").map(({ labels }) => {
    const instead = now.rows("fcn_engine_fallback", key(labels)).find(({ value }) => value);
    const newer = now.sum("fcn_model_load_failed", key(labels));
    const state = instead
      ? `serves; ${instead.labels.wanted} failed`
      : newer ? "serves; a newer file cannot be loaded" : "serves";
    return { ...labels, state, bad: Boolean(instead || newer) };
  });
  const failed = now
    .rows("fcn_model_load_failed")
    .filter(({ labels, value }) => value && !now.sum("fcn_model_info", key(labels)))
    .map(({ labels }) => ({ ...labels, state: "cannot be loaded: see the log", bad: true }));
  const all = [...serving, ...failed];
  fill("model-rows", all, ({ model, version, engine, provider, precision, state }) => [
    model, version, engine ?? "–", provider ?? "–", precision ?? "–", state,
  ]);
  [...$("model-rows").rows].forEach((row, index) =>
    row.cells[5].classList.toggle("late", all[index].bad),
  );
}

function showProcess(now, before, seconds) {
  const reasons = now
    .values("fcn_rejected_total", "reason")
    .map((reason) => [reason.replaceAll("_", " "), increase(now, before, "fcn_rejected_total", { reason })])
    .filter(([, count]) => count > 0)
    .map(([reason, count]) => [reason, whole.format(count)]);
  $("reasons").replaceChildren(...terms(reasons.length ? reasons : [["None", "so far"]]));
  const limit = now.sum("fcn_memory_limit_bytes");
  const used = mebibytes(now.sum("process_resident_memory_bytes"));
  const cpu = increase(now, before, "process_cpu_seconds_total") / seconds;
  $("process").replaceChildren(
    ...terms([
      ["Runs for", span(now.atMs / 1000 - now.sum("process_start_time_seconds"))],
      ["Memory", limit ? `${used} of ${mebibytes(limit)}` : used],
      ["Cores in use", `${short.format(cpu)} on average`],
      ["Compiling", `${short.format(increase(now, before, "fcn_compile_seconds_total"))} s`],
    ]),
  );
}

/** Rows of a table: the first cell names its row. */
function fill(id, items, cells) {
  $(id).replaceChildren(
    ...items.map((item) => {
      const [name, ...values] = cells(item);
      const head = element("th", "", name);
      head.scope = "row";
      return element("tr", "", head, ...values.map((value) => element("td", "", value)));
    }),
  );
}

function show() {
  const { now } = history;
  const lastMs = Number($("span").value);
  const before = history.before(lastMs);
  const beganMs = before ? before.atMs : 1000 * now.sum("process_start_time_seconds");
  const seconds = Math.max(1, (now.atMs - beganMs) / 1000);
  showCards(now, before, seconds);
  showLatency(now, before);
  showPast();
  showStages(now, before);
  showQueue(now, before);
  showModels(now);
  showProcess(now, before, seconds);
}

async function ask() {
  try {
    const response = await fetch("metrics", { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!response.ok) throw new Error(`it says ${response.status}`);
    history.add(new Metrics(await response.text(), Date.now()));
    $("silent").hidden = true;
    show();
  } catch (error) {
    if (!$("silent").hidden) return; // told once
    const since = new Date().toLocaleTimeString("en-GB");
    $("silent").textContent =
      `No figures since ${since}: ${error.message}. Check that the server runs; ` +
      "this page asks on, and what it shows is from before.";
    $("silent").hidden = false;
  }
}

$("span").addEventListener("change", () => history.now && show());

async function askOn() {
  if (!document.hidden) await ask();
  setTimeout(askOn, EVERY_MS);
}
askOn();
