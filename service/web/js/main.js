// Wires the page: an image comes in, the server answers, the parts show it.

import { Classes, spoken } from "./classes.js";
import { curlCommand } from "./curl.js";
import { Downloads, fileName } from "./downloads.js";
import { Intake } from "./intake.js";
import { Legend } from "./legend.js";
import { Models } from "./models.js";
import { readIds } from "./png.js";
import { key, Problem, segment, service } from "./server.js";
import { Timing } from "./timing.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const view = new View($("frame"));
const legend = new Legend(document);
const timing = new Timing(document);
const downloads = new Downloads(document);
const models = new Models(document);
const intake = new Intake(document);

let facts; // what holds at this server
let file; // the image, as it came
let classes; // of the answer; of the model before there is one
let labels; // {width, height, ids}
let shown = { output: "label_map", type: "image/png" }; // what the command is for
let summary = $("readout").textContent; // of the answer, where no pixel is pointed at
let labelBlob; // the label map as the server sent it
let running = new AbortController();

function showProblem(error) {
  if (error.name === "AbortError") return; // a newer image took its place
  const { title, detail, requestId } =
    error instanceof Problem ? error : new Problem("The page failed", error.message);
  $("problem-title").textContent = title;
  $("problem-detail").textContent = detail.charAt(0).toUpperCase() + detail.slice(1);
  $("problem-request").textContent = requestId ? `Request ${requestId}` : "";
  $("problem").hidden = false;
  $("problem").scrollIntoView({ block: "nearest" });
}

function hideProblem() {
  $("problem").hidden = true;
}

function requestFor(output) {
  const alpha = $("opacity").value / 100;
  const kept = output === "overlay" ? classes.drawn : classes.kept;
  return { version: models.chosen, output, alpha, classes: kept, scale: $("scale").value };
}

/** For what was done last, as it would be done now. */
function showCurl() {
  if (!file || classes.kept?.length === 0) return; // nothing can be asked for
  const { output, type } = shown;
  const saved = fileName(file.name, output, type);
  $("curl").textContent = curlCommand(file, requestFor(output), saved, Boolean(key.value));
  $("curl-key").hidden = !key.value;
}

/** The buttons stand in the empty box until there is an image, then under it. */
function makeRoom() {
  const focused = document.activeElement;
  $("tools").prepend($("sources"));
  $("intake").hidden = true;
  focused.focus(); // moving an element takes the focus away
}

function paint() {
  view.paint(labels.ids, classes.palette());
  downloads.follow(classes.kept, classes.version.contract);
}

/** What the browser can draw of the file. It cannot read TIFF: the server's copy of it then. */
async function drawable(image, signal) {
  try {
    return await createImageBitmap(image);
  } catch {
    const untouched = { version: models.chosen, output: "overlay", alpha: 0 };
    return createImageBitmap((await segment(image, untouched, signal)).blob);
  }
}

async function run(image) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  hideProblem();
  const before = document.body.dataset.state;
  try {
    if (!models.chosen) throw new Problem("Not ready", "this page knows no model: reload it.");
    if (image.size > facts.max_image_bytes) {
      const limit = (facts.max_image_bytes / 2 ** 20).toPrecision(3);
      throw new Problem("Image too large", `this server takes up to ${limit} MiB: send a smaller one`);
    }
    document.body.dataset.state = "busy";
    $("image").setAttribute("aria-busy", "true");
    $("readout").textContent = "Segmenting …";
    const version = models.chosen;
    const answer = await segment(image, { version, output: "label_map", scale: $("scale").value }, signal);
    const read = await readIds(answer.blob);
    const bitmap = await drawable(image, signal);
    if (signal.aborted) return;
    const hidden = classes.version === version ? classes.hidden : new Set();
    [file, labels, labelBlob] = [image, read, answer.blob];
    classes = Object.assign(new Classes(version.contract.classes), { hidden, version });
    classes.count(read.ids);
    document.body.dataset.state = "done";
    document.body.dataset.answered = "";
    makeRoom();
    view.show(bitmap, read.width, read.height);
    bitmap.close();
    paint();
    legend.show(classes);
    timing.show(answer.stages, 1000 * facts.latency_target_s, answer.tripMs);
    shown = { output: "label_map", type: "image/png" };
    showCurl();
    const names = classes.present.slice(0, 3).map(({ name }) => spoken(name));
    summary =
      `${read.width} × ${read.height} pixels, ${classes.present.length} classes: ` +
      `mostly ${names.join(", ")}.`;
    $("readout").textContent = summary;
  } catch (error) {
    if (signal.aborted) return;
    document.body.dataset.state = before === "busy" ? (labels ? "done" : "empty") : before;
    $("readout").textContent = summary;
    showProblem(error);
  } finally {
    if (!signal.aborted) $("image").removeAttribute("aria-busy");
  }
}

async function save(output) {
  hideProblem();
  try {
    const whole = output === "label_map" && !classes.kept;
    const blob = whole ? labelBlob : (await segment(file, requestFor(output))).blob;
    downloads.save(blob, file.name, output);
    shown = { output, type: blob.type };
    showCurl();
  } catch (error) {
    showProblem(error);
  }
}

function slide(id, show) {
  const moved = () => {
    $(`${id}-value`).textContent = `${$(id).value}%`;
    $(id).setAttribute("aria-valuetext", `${$(id).value}%`);
    show($(id).value);
  };
  $(id).addEventListener("input", moved);
  moved();
}

view.addEventListener("point", ({ detail: at }) => {
  if (!at || !labels) {
    legend.mark(null);
    if (document.body.dataset.state !== "busy") $("readout").textContent = summary;
    return;
  }
  const id = labels.ids[at.y * labels.width + at.x];
  const name = classes.nameOf(id);
  const off = classes.hidden.has(id) ? " (hidden)" : "";
  view.label(name + off, classes.colorOf(id));
  $("readout").textContent = `${name}${off}, at ${at.x} × ${at.y}`;
  legend.mark(id);
});
view.addEventListener("wipe", ({ detail }) => {
  $("wipe").value = detail;
  $("wipe").dispatchEvent(new Event("input"));
});
slide("opacity", (percent) => {
  view.opacity = percent;
  showCurl();
});
slide("wipe", (percent) => (view.wipe = percent));
legend.addEventListener("change", () => {
  paint();
  showCurl();
});
key.addEventListener("change", showCurl);
downloads.addEventListener("wanted", ({ detail }) => save(detail));
intake.addEventListener("image", ({ detail }) => run(detail));
intake.addEventListener("problem", ({ detail }) => showProblem(detail));
models.addEventListener("change", () => {
  classes = Object.assign(new Classes(models.chosen.contract.classes), { version: models.chosen });
  if (file) run(file);
  else legend.show(classes);
});
$("scale").addEventListener("change", () => file && run(file));
$("problem-close").addEventListener("click", () => {
  hideProblem();
  $("choose").focus();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copy").textContent = "Copied";
  } catch {
    // Without https there is no clipboard: select it, so that Ctrl+C does it.
    getSelection().selectAllChildren($("curl"));
    $("copy").textContent = "Selected";
  }
  setTimeout(() => ($("copy").textContent = "Copy"), 2000);
});

try {
  facts = await service();
  downloads.offer(facts.outputs);
  await models.load();
} catch (error) {
  for (const id of ["choose", "camera"]) $(id).disabled = true;
  showProblem(error);
}
