// Wires the page: images come in, the server answers, the parts show it.

import { Album } from "./album.js";
import { Camera } from "./camera.js";
import { Classes, spoken } from "./classes.js";
import { overImage, slider } from "./controls.js";
import { copyOnClick } from "./copying.js";
import { curlCommand } from "./curl.js";
import { Downloads, fileName } from "./downloads.js";
import { Intake } from "./intake.js";
import { Legend } from "./legend.js";
import { Live } from "./live.js";
import { Models } from "./models.js";
import { Problems } from "./problems.js";
import { Progress } from "./progress.js";
import { Samples } from "./samples.js";
import { key, Problem, segment, service } from "./server.js";
import { sharesTable } from "./shares.js";
import { Timing } from "./timing.js";
import { View } from "./view.js";
import { Work } from "./work.js";

const $ = (id) => document.getElementById(id);
const view = new View($("frame"));
const legend = new Legend(document);
const timing = new Timing(document);
const downloads = new Downloads(document);
const models = new Models(document);
const album = new Album(document);
const problems = new Problems(document);
const progress = new Progress(document);
const samples = new Samples(document);
const camera = new Camera(document);
const intake = new Intake(document);
const live = new Live();
const work = new Work(() => ({ request: wanted(), maxBytes: facts?.max_image_bytes ?? Infinity }));

let facts; // what holds at this server
let job = null; // the image that is looked at
let drawn = null; // the job whose image is in the frame
let labels = null; // {width, height, ids} of what is looked at, once there is an answer
let classes; // of the answer; of the model before there is one
let looks = 0; // how often another image was turned to: what comes late is for an earlier one
let shown = { output: "label_map", type: "image/png" }; // what the command is for
let summary; // what is said where no pixel is pointed at
const welcome = $("readout").textContent;
const hidden = new Map(); // version -> ids of the classes that are not shown

/** "empty", "busy", "done", "stopped" or "live". */
function setState(state) {
  document.body.dataset.state = state;
  if (state === "done") document.body.dataset.answered = "";
  for (const panel of document.querySelectorAll(".answered")) panel.inert = state !== "done";
  $("image").setAttribute("aria-busy", state === "busy");
}

function say(text) {
  summary = text;
  $("readout").textContent = text;
}

/** What the next image is asked for with. */
function wanted() {
  if (!models.chosen) throw new Problem("Not ready", "this page knows no model: reload it.");
  return { version: models.chosen, scale: $("scale").value };
}

function classesOf(version) {
  if (!hidden.has(version)) hidden.set(version, new Set());
  const made = new Classes(version.contract.classes, $("palette").value);
  return Object.assign(made, { version, hidden: hidden.get(version) });
}

function requestFor(output) {
  const alpha = $("opacity").value / 100;
  const kept = output === "overlay" ? classes.drawn : classes.kept;
  return { version: models.chosen, output, alpha, classes: kept, scale: $("scale").value };
}

/** For what was done last, as it would be done now. */
function showCurl() {
  if (!job?.answer || classes.kept?.length === 0) return; // nothing can be asked for
  const { output, type } = shown;
  const saved = fileName(job.file.name, output, type);
  $("curl").textContent = curlCommand(job.file, requestFor(output), saved, Boolean(key.value));
  $("curl-key").hidden = !key.value;
}

/** The buttons stand in the empty box until there is an image, then under it. */
function makeRoom() {
  if ($("intake").hidden) return;
  const focused = document.activeElement;
  $("tools").prepend($("ways"));
  $("intake").hidden = true;
  focused.focus(); // moving an element takes the focus away
}

function paint() {
  if (!labels) return;
  view.paint(labels.ids, classes.palette(), $("outlined").checked);
  downloads.follow(classes.kept, classes.version.contract);
}

/** Puts a job's image into the frame. late: says whether another was turned to meanwhile. */
async function draw(at, late, size) {
  const bitmap = await at.bitmap();
  if (bitmap && !late()) {
    at.remember(bitmap);
    makeRoom();
    view.show(bitmap, size?.width ?? bitmap.width, size?.height ?? bitmap.height);
    drawn = at;
  }
  bitmap?.close();
}

/** Turns to a job: its image at once, its answer when there is one. */
async function look(at) {
  const turn = ++looks;
  const late = () => turn !== looks;
  const answered = at.state === "done";
  [job, labels] = [at, null];
  setState(at.state === "failed" || at.state === "cancelled" ? "stopped" : "busy");
  if (!answered && models.chosen) legend.show((classes = classesOf(models.chosen)));
  say(answered ? "Reading the answer …" : "Segmenting …");
  try {
    if (drawn !== at) await draw(at, late);
    else if (!answered) view.clear();
    if (late()) return;
    if (answered) await showAnswer(at, late);
    else if (at.problem || at.state === "cancelled") await showFailure(at);
    if (!late()) album.show(work.jobs, job);
  } catch (error) {
    if (late()) return;
    setState("stopped");
    problems.show(error);
  }
}

async function showAnswer(at, late) {
  const { version, width, height, stages, tripMs } = at.answer;
  const read = await at.labels();
  const fits = drawn === at && view.width === width && view.height === height;
  if (!fits && !late()) await draw(at, late, read);
  if (late()) return;
  labels = read;
  classes = classesOf(version);
  classes.count(read.ids);
  paint();
  setState("done");
  legend.show(classes);
  timing.show(stages, 1000 * facts.latency_target_s, tripMs);
  shown = { output: "label_map", type: "image/png" };
  showCurl();
  const names = classes.present.slice(0, 3).map(({ name }) => spoken(name));
  say(`${width} × ${height} pixels, ${classes.present.length} classes: mostly ${names.join(", ")}.`);
}

/** An image that can be seen stays, for another try; else the last answer comes back. */
async function showFailure(at) {
  const problem = at.problem ?? new Problem("Cancelled", "this image was not segmented.");
  const last = work.jobs.findLast(({ state }) => state === "done");
  if (drawn === at) say("No answer for this image.");
  else if (last) await look(last);
  else {
    job = null;
    setState($("intake").hidden ? "stopped" : "empty");
    say(welcome);
  }
  problems.show(problem, drawn === at);
}

function take(files) {
  problems.hide();
  const first = work.add(files);
  look(first);
  live.stop();
}

async function save(output) {
  problems.hide();
  try {
    const whole = output === "label_map" && !classes.kept;
    const blob = whole ? job.answer.blob : (await segment(job.file, requestFor(output))).blob;
    downloads.save(blob, job.file.name, output);
    shown = { output, type: blob.type };
    showCurl();
  } catch (error) {
    problems.show(error);
  }
}

/** All images anew, the one that is looked at first. */
function again() {
  if (job) work.first([job, ...work.jobs.filter((other) => other !== job)]);
  if (job) look(job);
}

function followWork() {
  const running = work.jobs.find(({ state }) => state === "busy");
  if (running) progress.follow(running, work.done, work.done + work.left);
  else if (!live.isOn) progress.end();
}

work.addEventListener("change", async ({ detail: changed }) => {
  followWork();
  album.show(work.jobs, job);
  const ended = ["done", "failed", "cancelled"].includes(changed.state);
  if (changed === job && ended) await look(job);
  else if (changed.state === "done" && !changed.thumbnail) {
    const bitmap = await changed.bitmap().catch(() => null);
    if (bitmap) changed.remember(bitmap);
    bitmap?.close();
    album.show(work.jobs, job);
  }
});
work.addEventListener("sent", followWork);
progress.addEventListener("cancel", () => (live.isOn ? live.stop() : work.cancel()));

view.addEventListener("point", ({ detail: at }) => {
  if (!at || !labels) {
    legend.mark(null);
    view.label("", "transparent");
    $("readout").textContent = summary;
    return;
  }
  const id = labels.ids[at.y * labels.width + at.x];
  const name = classes.nameOf(id);
  const off = classes.hidden.has(id) ? " (hidden)" : "";
  view.label(name + off, classes.colorOf(id));
  $("readout").textContent = `${name}${off}, at ${at.x} × ${at.y}`;
  legend.mark(id);
});
overImage(view);
slider("opacity", (percent) => {
  view.opacity = percent;
  showCurl();
});
slider("wipe", (percent) => (view.wipe = percent));
$("outlined").addEventListener("change", paint);
$("palette").addEventListener("change", () => {
  classes?.dress($("palette").value);
  paint();
  if (classes) legend.show(classes);
});
$("scale").addEventListener("change", again);
legend.addEventListener("change", () => {
  paint();
  showCurl();
});
key.addEventListener("change", showCurl);
downloads.addEventListener("wanted", ({ detail }) => save(detail));
album.addEventListener("chosen", ({ detail }) => look(detail));
$("album-shares").addEventListener("click", () =>
  downloads.saveAs(new Blob([sharesTable(work.jobs)], { type: "text/csv" }), "shares.csv"),
);
$("album-clear").addEventListener("click", () => {
  work.clear();
  if (job?.state === "done") work.jobs = [job]; // what is looked at stays
  album.show(work.jobs, job);
  $("choose").focus();
});

intake.addEventListener("images", ({ detail }) => take(detail));
for (const source of [camera, samples]) {
  source.addEventListener("image", ({ detail }) => take([detail]));
}
for (const source of [intake, camera, samples, live]) {
  source.addEventListener("problem", ({ detail }) => problems.show(detail));
}
problems.addEventListener("again", () => {
  problems.hide();
  work.first([job]);
  look(job);
});
problems.addEventListener("closed", () => $("choose").focus());

camera.addEventListener("live", ({ detail: stream }) => {
  problems.hide();
  looks++;
  job = drawn = labels = null;
  work.cancel();
  classes = classesOf(models.chosen);
  say("Live: the next image leaves when the answer to the last is there.");
  progress.live(0, 0);
  live.start(stream, wanted);
});
live.addEventListener("image", ({ detail: { canvas, labels: read, stages, tripMs, rate } }) => {
  if (job) return; // another image was chosen meanwhile
  if (classes.version !== models.chosen) classes = classesOf(models.chosen);
  labels = read;
  classes.count(read.ids);
  makeRoom();
  view.show(canvas, read.width, read.height, true);
  document.body.dataset.answered = "";
  setState("live");
  paint();
  legend.follow(classes);
  timing.show(stages, 1000 * facts.latency_target_s, tripMs);
  progress.live(rate, tripMs);
});
live.addEventListener("end", ({ detail: file }) => {
  if (job) return; // another image took its place
  progress.end();
  if (file) take([file]); // the last one stays
  else setState($("intake").hidden ? "stopped" : "empty");
});

models.addEventListener("change", () => {
  samples.offer(models.chosen.contract.classes);
  problems.hide();
  if (job) again();
  else legend.show((classes = classesOf(models.chosen)));
});
copyOnClick($("copy"), $("curl"));

say(welcome);
try {
  facts = await service();
  downloads.offer(facts.outputs);
  await models.load();
} catch (error) {
  for (const id of ["choose", "camera"]) $(id).disabled = true;
  problems.show(error);
}
